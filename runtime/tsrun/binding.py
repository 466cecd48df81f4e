"""Resolves a program into a flat list of calls, for steps of any size: every view, kernel and argument settled beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tskernels import views
from tskernels.dtypes import size_bytes
from tsrun.errors import ArtifactError
from tsrun.places import Extent, Place, contiguous, extent
from tsrun.program import KEEP, Attribute, CallNode, Frame, Graph, Input, Node, Plan, Program
from tsrun.step_inputs import StepInput
from tsrun.weights import Weights

Value = Place | int
COPY = "copy"
"""What stands for an op where a view is a graph's result, and its caller wants it elsewhere, and where a step keeps a value."""
_VIEWS = {"ts::narrow": views.narrow, "ts::split": views.split, "ts::merge": views.merge, KEEP: views.keep}


@dataclass(frozen=True, slots=True)
class BoundCall:
    """A kernel of an op with its arguments. out: where its result goes, or the first argument of an op that works in place; plan: of
    kernels.json, how it is launched."""

    op: str
    kernel: str
    args: tuple[Value, ...]
    attrs: Mapping[str, Attribute]
    out: Place
    constants: Sequence[float] = ()
    plan: int | None = None


Observe = Callable[[BoundCall, Sequence[Any]], None]
"""Is told of a call that is about to run, with its arguments: torch tensors in the places' stead, for it to read."""


@dataclass(frozen=True, slots=True)
class BoundPlan:
    """The calls of a plan, in order, and where its result then lies."""

    plan: Plan
    calls: Sequence[BoundCall]
    output: Place


@dataclass(frozen=True, slots=True)
class Binder:
    """What a program is bound to on one rank. kept: where drafts take what steps keep; inplace: ops that change their first operand."""

    program: Program
    weights: Weights
    caches: Sequence[Place]
    states: Sequence[Place]
    coordinates: Mapping[str, int]
    step_inputs: Mapping[StepInput, Place]
    kept: Mapping[str, Place] = field(default_factory=dict)
    inplace: frozenset[str] = frozenset({"ts::cache_append", "ts::latent_append", "ts::expanded_attention"})

    def bind(self, plan: Plan, keeps: Mapping[str, Place]) -> BoundPlan:
        """keeps: where the plan keeps what it does."""
        binding = _Binding(self, plan, keeps)
        entry = self.program.graphs[plan.entry]
        values: dict[str, Value] = {}
        for given in entry.inputs:
            if given.kind == "step" and given.step is not None:
                values[given.name] = self.step_inputs[given.step, given.window]
            elif given.kind == "kept":
                values[given.name] = self.kept[given.name]
            elif given.kind == "coordinate" and given.axis is not None:
                values[given.name] = self.coordinates[given.axis]
            elif given.kind == "weight" and given.tensor is not None:
                values[given.name] = self.weight(given, given.tensor)
        output = binding.graph(entry, values, Frame(0, 0), None)
        return BoundPlan(plan, binding.calls, output)

    def weight(self, given: Input, tensor: str) -> Place:
        shape = None if given.shape is None else tuple(n for n in given.shape if isinstance(n, int))
        return self.weights.place(tensor, given.dtype, shape)


@dataclass(slots=True)
class _Binding:
    """One walk over the program with its calls inlined."""

    binder: Binder
    plan: Plan
    keeps: Mapping[str, Place]
    calls: list[BoundCall] = field(default_factory=list)

    def graph(self, graph: Graph, values: dict[str, Value], frame: Frame, output: Place | None) -> Place:
        """Bind a graph's nodes; with `output` its output node is written there and not at its own place."""
        for node in graph.nodes:
            target = output if node.name == graph.output else None
            if isinstance(node, CallNode):
                values[node.name] = self._call(node, values, frame, target)
            else:
                values[node.name] = self._node(node, values, frame, target)
        result = values[graph.output]
        assert isinstance(result, Place)
        return result

    def _node(self, node: Node, values: Mapping[str, Value], frame: Frame, target: Place | None) -> Place:
        args = tuple(values[name] for name in node.args)
        if node.op in _VIEWS:
            view: Place = _VIEWS[node.op](*args, **node.attrs)  # type: ignore[operator]
            if node.op == KEEP:
                self.calls.append(BoundCall(COPY, COPY, (view,), {}, self.keeps[str(node.attrs["name"])]))
            return self._kept(view, target)
        if node.op in self.binder.inplace:
            out = args[0]
            assert isinstance(out, Place)
        else:
            out = target if target is not None else self._storage(node, node.shape, node.dtype, frame)
        self.calls.append(BoundCall(node.op, node.kernel, args, node.attrs, out, node.constants, node.plan))
        return self._kept(out, None if out is target else target)

    def _kept(self, place: Place, target: Place | None) -> Place:
        """Where an alias is the graph's result, a copy: the caller's storage outlives the callee's frame, a view of the frame would not."""
        if target is None:
            return place
        self.calls.append(BoundCall(COPY, COPY, (place,), {}, target))
        return target

    def _call(self, node: CallNode, values: Mapping[str, Value], frame: Frame, target: Place | None) -> Place:
        callee = self.binder.program.graphs[node.call]
        bound: dict[str, Value] = {}
        args = iter(node.args)
        for given in callee.inputs:
            if given.kind == "weight":
                bound[given.name] = self.binder.weight(given, node.weights[given.name])
            elif given.kind == "cache":
                bound[given.name] = self.binder.caches[node.caches[given.name]]
            elif given.kind == "state":
                bound[given.name] = self.binder.states[node.states[given.name]]
            else:
                bound[given.name] = values[next(args)]
        if target is None and node.region is not None:
            result = next(n for n in callee.nodes if n.name == callee.output)
            shape, dtype = node.shape or result.shape, node.dtype or result.dtype
            if shape is None or dtype is None:
                raise self._refuse(f"call {node.name!r} says neither the shape nor the type of its result")
            target = self._storage(node, shape, dtype, frame)
        return self.graph(callee, bound, frame.plus(node.frame), target)

    def _storage(self, node: Node | CallNode, shape: Sequence[int | str], dtype: str, frame: Frame) -> Place:
        """A node's place: offsets and sizes are bytes a token (or a sequence), so they scale with the step."""
        if node.region is None or node.offset is None:
            raise self._refuse(f"{node.name!r} computes a result and has no storage for it")
        extents: tuple[Extent, ...] = tuple(map(extent, shape))
        # `T/4` rows are a quarter of the step's, and so is what they take of a row of the step.
        row_bytes, ranks = size_bytes(dtype), extents[0][1] if isinstance(extents[0], tuple) else 1
        for size in extents[1:]:
            if not isinstance(size, int):
                raise self._refuse(f"{node.name!r} has the shape {list(shape)}, of which only the rows may be of the step")
            row_bytes *= size
        begin = frame.of(node.region) + node.offset
        row_bytes = -(-row_bytes // ranks)
        if begin + row_bytes > self.plan.frame.of(node.region):
            raise self._refuse(f"{node.name!r} ends outside of the frame")
        return Place(node.region, begin, row_bytes, 0, dtype, extents, contiguous(extents))

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError("program.json", what, "compile the artifact again")
