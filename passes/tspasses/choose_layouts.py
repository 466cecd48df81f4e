"""Choose how each weight is stored: in the layout that all its uses together cost least in.

Guarantees: every op that reads a weight has a kernel that takes its layout; a layout other than rows is strictly cheaper than rows, and
keeps every bit. Where all kernels that compete in all of a weight's layouts were measured in steps of the same sizes, that decides, and
the cost model elsewhere.
Weights that a kernel takes in layouts together, as those of a mixture's experts, are all in the same.
Does not: choose otherwise the layouts of several weights together, or change one that a weight has already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.graph import Input, Program, bound_weights, op_of, tensor_operands, type_of
from tsc.mesh import Mesh
from tskernels.layouts import LAYOUTS
from tskernels.registry import ROWS, Candidate, Measurements, explain, in_common, kernels, rank
from tskernels.target import Target
from tspasses.joined_weights import WeightKey, tensor_of
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class ChooseLayouts:
    """layouts: of weights, where several programs must store the same; None: what suits the one."""

    target: Target
    layouts: Mapping[WeightKey, str] | None = None
    measured: Measurements | None = None
    name: ClassVar[str] = "choose-layouts"

    def agree(self, programs: Sequence[Program]) -> ChooseLayouts:
        """Choose what suits all of the programs."""
        return replace(self, layouts=cheapest_layouts(programs, self.target, self.measured))

    def run(self, program: Program) -> Program:
        layouts = cheapest_layouts([program], self.target, self.measured) if self.layouts is None else self.layouts
        for name, graph in program.graphs.items():
            for node in graph.nodes:
                is_weight = node.op == "placeholder" and node.meta["input"].kind == "weight"
                if is_weight and (layout := layouts.get((program.entry, name, tensor_of(node)))):
                    node.meta["input"] = replace(node.meta["input"], layout=layout)
        return program


def cheapest_layouts(programs: Sequence[Program], target: Target, measured: Measurements | None = None) -> Mapping[WeightKey, str]:
    """Of the weights that are in none yet."""
    meshes = {graph: program.mesh for program in programs for graph in program.graphs.values()}
    names = {graph: (program.entry, name) for program in programs for name, graph in program.graphs.items()}
    found = {}
    for weights in _same_weights(programs):
        layout = _cheapest(weights, meshes, target, measured)
        found.update({(*names[w.graph], tensor_of(w)): layout for w in weights})
    return found


def _same_weights(programs: Sequence[Program]) -> Iterator[frozenset[torch.fx.Node]]:
    """The placeholders that get one layout: those that stand for a tensor, one in each program, and those of a layer for the tensors of
    all its calls; and those that one kernel takes in layouts."""
    group_of: dict[str | torch.fx.Node, frozenset[str | torch.fx.Node]] = {}

    def join(*members: str | torch.fx.Node) -> None:
        joined = frozenset[str | torch.fx.Node]().union(*(group_of.get(m, frozenset({m})) for m in members))
        group_of.update(dict.fromkeys(joined, joined))

    for program in programs:
        for prefix, node in bound_weights(program):
            kind: Input = node.meta["input"]
            if kind.layout == ROWS:
                join(kind.tensor(prefix), node)
        for graph in program.graphs.values():
            for node in graph.nodes:
                for taken in _taken_together(node):
                    if taken and all(weight in group_of for weight in taken):
                        join(*taken)
    for group in dict.fromkeys(group_of.values()):
        yield frozenset(n for n in group if isinstance(n, torch.fx.Node))


def _taken_together(node: torch.fx.Node) -> Iterator[Sequence[torch.fx.Node]]:
    """What each kernel of a node's op takes in layouts that the compiler may choose."""
    if node.op == "call_function":
        operands = tensor_operands(node)
        for kernel in kernels(f"ts::{op_of(node)}"):
            yield [operands[index] for index, layout in kernel.layouts.items() if layout in LAYOUTS and LAYOUTS[layout].is_chosen]


def _cheapest(
    weights: frozenset[torch.fx.Node], meshes: Mapping[torch.fx.Graph, Mesh], target: Target, measured: Measurements | None
) -> str:
    """Rows where no layout costs less. What kernels are ranked by before their cost counts before it here, too."""
    uses = list(dict.fromkeys(user for weight in weights for user in weight.users))
    if any(user.op != "call_function" for user in uses):  # another graph would have to know
        return ROWS
    known = (ROWS, *sorted(_layouts_taken(weights, uses) - {ROWS}))
    layouts = [name for name in known if all(_takes(name, weight, meshes[weight.graph]) for weight in weights)]

    def best(sizes: Collection[int] | None = None) -> dict[str, list[Candidate]]:
        """By layout that all uses have kernels for, the kernel of each use."""
        stored = {name: dict.fromkeys(weights, name) for name in layouts}
        calls = {name: [call_of(meshes[u.graph], u, stored[name]) for u in uses] for name in layouts}
        found = {name: [explain(call, target, measured, sizes)[0] for call in asked] for name, asked in calls.items()}
        return {name: chosen for name, chosen in found.items() if all(c.reason is None for c in chosen)}

    found = best()
    sizes = [c.sizes for chosen in found.values() for c in chosen]
    if len(set(sizes)) > 1:  # seconds of steps of other sizes do not add up, nor do measured and modelled ones
        found = best(in_common(sizes))
    costs = {}
    for name, chosen in found.items():
        ranks = [rank(c.kernel) for c in chosen]
        costs[name] = (sum(first for first, _ in ranks), sum(second for _, second in ranks), sum(c.cost_seconds for c in chosen))
    return min(costs, key=lambda layout: costs[layout], default=ROWS)


def _takes(layout: str, weight: torch.fx.Node, mesh: Mesh) -> bool:
    kind = type_of(weight)
    return LAYOUTS[layout].takes(kind.dtype, [int(d) for d in kind.local(mesh)])


def _layouts_taken(weights: frozenset[torch.fx.Node], uses: Sequence[torch.fx.Node]) -> set[str]:
    """What kernels of the ops that read the weights take there, of what the compiler may choose."""
    return {
        layout
        for user in uses
        for index, operand in enumerate(tensor_operands(user))
        for kernel in kernels(f"ts::{op_of(user)}")
        if operand in weights and (layout := kernel.layouts.get(index, ROWS)) in LAYOUTS and LAYOUTS[layout].is_chosen
    }
