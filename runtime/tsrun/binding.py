"""Resolves a program for one step shape into a flat list of calls: every view, kernel and argument settled beforehand.

Dimensions: T tokens and S sequences in the step, P columns of the block tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.registry import Kernel, lookup
from tsrun.errors import ArtifactError
from tsrun.program import CallNode, Frame, Graph, Input, Node, Plan, Program, Region
from tsrun.step_inputs import StepInput
from tsrun.weights import Weights

Value = Tensor | int


@dataclass(frozen=True, slots=True)
class BoundProgram:
    """What a step of one shape replays, and where its result then lies."""

    calls: tuple[Callable[[], Any], ...]
    output: Tensor


class Kernels:
    """The kernels that a program names, looked up once."""

    def __init__(self, program: Program, file: Path) -> None:
        self._kernels: dict[tuple[str, str], Kernel] = {}
        for graph in program.graphs.values():
            for node in graph.nodes:
                if isinstance(node, Node) and (node.op, node.kernel) not in self._kernels:
                    try:
                        self._kernels[node.op, node.kernel] = lookup(node.op, node.kernel)
                    except Exception as error:  # KernelMissing, or what a plug-in's import raised
                        what = f"kernel {node.kernel!r} of {node.op!r} can not be had here ({error})"
                        raise ArtifactError(str(file), what, "compile it again with the `tsc` of this installation") from error

    def of(self, node: Node) -> Kernel:
        return self._kernels[node.op, node.kernel]


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes [begin, end) of an arena as a tensor."""

    region: Region
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Binder:
    """Everything a binding needs that does not depend on the step shape, and the arenas."""

    program: Program
    kernels: Kernels
    weights: Weights
    caches: Sequence[Tensor]
    coordinates: Mapping[str, int]
    arenas: Mapping[Region, Tensor]

    def bind(self, step_inputs: Mapping[StepInput, Tensor], T: int, S: int, P: int) -> BoundProgram:
        plan = self.program.plan_for(T)
        binding = _Binding(self, plan, {"T": T, "S": S, "S.pages": P})
        entry = self.program.graphs[plan.entry]
        values: dict[str, Value] = {}
        for given in entry.inputs:
            if given.kind == "step" and given.step is not None:
                values[given.name] = step_inputs[given.step, given.window]
            elif given.kind == "coordinate" and given.axis is not None:
                values[given.name] = self.coordinates[given.axis]
            elif given.kind == "weight" and given.tensor is not None:
                values[given.name] = self.weight(given, given.tensor)
        output = binding.graph(entry, values, Frame(0, 0), None)
        return BoundProgram(tuple(binding.calls), output)

    def weight(self, given: Input, tensor: str) -> Tensor:
        dtype = None if given.dtype is None else torch_dtype(given.dtype)
        shape = None if given.shape is None else tuple(n for n in given.shape if isinstance(n, int))
        return self.weights.tensor(tensor, dtype, shape)


class _Binding:
    """One walk over the program with its calls inlined."""

    def __init__(self, binder: Binder, plan: Plan, sizes: Mapping[str, int]) -> None:
        self._binder = binder
        self._plan = plan
        self._sizes = sizes
        self.calls: list[Callable[[], Any]] = []

    def graph(self, graph: Graph, values: dict[str, Value], frame: Frame, output: Tensor | None) -> Tensor:
        """Bind a graph's nodes; with `output` its output node is written there and not at its own place."""
        for node in graph.nodes:
            target = output if node.name == graph.output else None
            if isinstance(node, CallNode):
                values[node.name] = self._call(node, values, frame, target)
            else:
                values[node.name] = self._node(node, values, frame, target)
        result = values[graph.output]
        assert isinstance(result, Tensor)
        return result

    def _node(self, node: Node, values: Mapping[str, Value], frame: Frame, target: Tensor | None) -> Value:
        kernel = self._binder.kernels.of(node)
        args = [values[name] for name in node.args]
        if kernel.kind == "view":
            view: Tensor = kernel.function(*args, **node.attrs)
            if target is not None:  # the caller's storage outlives the callee's frame, a view of the frame would not
                self.calls.append(partial(target.copy_, view))
                return target
            return view
        if kernel.kind == "inplace":
            self.calls.append(partial(kernel.function, *args, **node.attrs))
            return args[0]
        out = target if target is not None else self._storage(node, node.shape, node.dtype, frame)
        self.calls.append(partial(kernel.function, *args, **node.attrs, out=out))
        return out

    def _call(self, node: CallNode, values: Mapping[str, Value], frame: Frame, target: Tensor | None) -> Tensor:
        callee = self._binder.program.graphs[node.call]
        bound: dict[str, Value] = {}
        args = iter(node.args)
        for given in callee.inputs:
            if given.kind == "weight":
                bound[given.name] = self._binder.weight(given, node.weights[given.name])
            elif given.kind == "cache":
                bound[given.name] = self._binder.caches[node.caches[given.name]]
            else:
                bound[given.name] = values[next(args)]
        if target is None and node.region is not None:
            result = next(n for n in callee.nodes if n.name == callee.output)
            shape, dtype = node.shape or result.shape, node.dtype or result.dtype
            if shape is None or dtype is None:
                raise self._refuse(f"call {node.name!r} says neither the shape nor the type of its result")
            target = self._storage(node, shape, dtype, frame)
        return self.graph(callee, bound, frame.plus(node.frame), target)

    def _storage(self, node: Node | CallNode, shape: Sequence[int | str], dtype_name: str, frame: Frame) -> Tensor:
        """A node's place: offsets and sizes are bytes a token (or a sequence), so they scale with the step."""
        if node.region is None or node.offset is None:
            raise self._refuse(f"{node.name!r} computes a result and has no storage for it")
        dtype = torch_dtype(dtype_name)
        sizes = [self._extent(n) if isinstance(n, str) else n for n in shape]
        begin = (frame.of(node.region) + node.offset) * self._sizes[node.region]
        end = begin + prod(sizes) * dtype.itemsize
        if end > self._plan.frame.of(node.region) * self._sizes[node.region]:
            raise self._refuse(f"{node.name!r} ends outside of the frame")
        return self._binder.arenas[node.region][begin:end].view(dtype).view(sizes)

    def _extent(self, name: str) -> int:
        """`T`, or `T/4`: the tokens of one of four ranks; the step is padded so that this is whole."""
        rows, _, ranks = name.partition("/")
        return self._sizes[rows] // int(ranks or 1)

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError("program.json", what, "compile the artifact again")


def new_arena(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)
