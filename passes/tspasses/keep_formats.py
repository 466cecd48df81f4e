"""Store weights in the quantized formats that are wanted for them, where the target has kernels for all that reads them.

Assumes: only the entry calls graphs; a target that has kernels for a format has them for its layout of joined weights too (FuseGated).
Guarantees: a graph's weight has one layout in all its calls: of a graph whose calls want different ones there is a copy for each
combination. A tensor has one layout in all graphs and programs.
Does not: choose formats, or quantize a weight that a kernel reads together with one that can not be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_lowercase
from typing import ClassVar

import torch.fx

from tsc.graph import CallBinding, Input, Program, bound_weights, type_of
from tsc.mesh import Mesh
from tskernels.layouts import layout
from tskernels.registry import ROWS, explain
from tskernels.target import Target
from tspasses.joined_weights import tensor_of
from tspasses.kernel_calls import call_of

Formats = Mapping[str, str]
"""By the checkpoint's names of tensors."""


@dataclass(frozen=True, slots=True)
class KeepFormats:
    """formats: that are wanted."""

    target: Target
    formats: Formats = field(default_factory=dict)
    name: ClassVar[str] = "keep-formats"

    def agree(self, programs: Sequence[Program]) -> KeepFormats:
        """Keep what all of the programs can have."""
        return replace(self, formats=kept_formats(programs, self.formats, self.target))

    def run(self, program: Program) -> Program:
        formats = kept_formats([program], self.formats, self.target)
        if formats:
            _store(program, formats)
        return program


def kept_formats(programs: Sequence[Program], wanted: Formats, target: Target) -> Formats:
    """Those of the wanted ones that every reader in each of the programs has a kernel for."""
    can: dict[str, bool] = {}
    for program in programs:
        for prefix, weight in bound_weights(program):
            name = prefix + tensor_of(weight)
            if name in wanted:
                can[name] = can.get(name, True) and _fits(program.mesh, weight, _wanted_of(weight.graph, prefix, wanted), target)
    return {name: wanted[name] for name, fits in can.items() if fits}


def _wanted_of(graph: torch.fx.Graph, prefix: str, wanted: Formats) -> Mapping[torch.fx.Node, str]:
    return {weight: wanted[name] for weight in _weights(graph) if (name := prefix + tensor_of(weight)) in wanted}


def _fits(mesh: Mesh, weight: torch.fx.Node, wanted: Mapping[torch.fx.Node, str], target: Target) -> bool:
    """Whether all that read a weight of a call can have it so, with the call's other weights as they are wanted and can be stored."""
    stored = {w: name for w, name in wanted.items() if layout(name).takes(type_of(w).dtype, [int(d) for d in type_of(w).local(mesh)])}
    if weight not in stored or not weight.users:
        return False
    return all(u.op == "call_function" and explain(call_of(mesh, u, stored), target)[0].reason is None for u in weight.users)


def _store(program: Program, formats: Formats) -> None:
    """Give the weights their layouts, and each call the graph of its combination."""
    for name, calls in _calls(program).items():
        combinations: dict[tuple[str, ...], list[torch.fx.Node]] = defaultdict(list)
        for call in calls:
            binding: CallBinding = call.meta["call"]
            combinations[_layouts(program.graphs[name], binding.prefix, formats)].append(call)
        graphs = {name: program.graphs[name]}
        for _ in range(1, len(combinations)):
            graphs[_free_name(name, {*program.graphs, *graphs})] = _copy(program.graphs[name])
        for (copy, graph), (layouts, readers) in zip(graphs.items(), combinations.items(), strict=True):
            _give(graph, layouts)
            for call in readers:
                call.target, call.meta["call"] = copy, replace(call.meta["call"], graph=copy)
        program.graphs = {k: g for key, old in program.graphs.items() for k, g in (graphs if key == name else {key: old}).items()}
    entry = program.graphs[program.entry]
    _give(entry, _layouts(entry, "", formats))


def _calls(program: Program) -> Mapping[str, Sequence[torch.fx.Node]]:
    """By graph, the nodes that call it, in the order of a step."""
    found: dict[str, list[torch.fx.Node]] = defaultdict(list)
    for graph in program.graphs.values():
        for node in graph.nodes:
            if node.op == "call_module":
                found[node.meta["call"].graph].append(node)
    return found


def _weights(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    return (n for n in graph.nodes if n.op == "placeholder" and n.meta["input"].kind == "weight")


def _layouts(graph: torch.fx.Graph, prefix: str, formats: Formats) -> tuple[str, ...]:
    return tuple(formats.get(prefix + tensor_of(weight), ROWS) for weight in _weights(graph))


def _give(graph: torch.fx.Graph, layouts: Sequence[str]) -> None:
    for weight, name in zip(_weights(graph), layouts, strict=True):
        kind: Input = weight.meta["input"]
        weight.meta["input"] = replace(kind, layout=name)


def _copy(graph: torch.fx.Graph) -> torch.fx.Graph:
    copy = torch.fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def _free_name(name: str, taken: set[str]) -> str:
    """Layer_0_b, Layer_0_c and so on."""
    letters = [*ascii_lowercase[1:], *(a + b for a in ascii_lowercase for b in ascii_lowercase)]
    return next(found for letter in letters if (found := f"{name}_{letter}") not in taken)
