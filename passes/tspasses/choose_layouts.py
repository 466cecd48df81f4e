"""Choose how each weight is stored: in the layout that all its uses together cost least in.

Guarantees: every op that reads a weight has a kernel that takes its layout; a layout other than rows is strictly cheaper than rows, and
keeps every bit.
Does not: choose the layouts of several weights together, or change one that a weight has already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.graph import Input, Program, bound_weights, op_of, tensor_operands, type_of
from tsc.mesh import Mesh
from tskernels.layouts import LAYOUTS
from tskernels.registry import REFERENCE, ROWS, explain, kernels
from tskernels.target import Target
from tspasses.joined_weights import tensor_of
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class ChooseLayouts:
    """layouts: by graph and weight, where several programs must store the same; None: what suits the one."""

    target: Target
    layouts: Mapping[tuple[str, str], str] | None = None
    name: ClassVar[str] = "choose-layouts"

    def agree(self, programs: Sequence[Program]) -> ChooseLayouts:
        """Choose what suits all of the programs."""
        return replace(self, layouts=cheapest_layouts(programs, self.target))

    def run(self, program: Program) -> Program:
        layouts = cheapest_layouts([program], self.target) if self.layouts is None else self.layouts
        for name, graph in program.graphs.items():
            for node in graph.nodes:
                if node.op == "placeholder" and (layout := layouts.get((name, tensor_of(node)))):
                    node.meta["input"] = replace(node.meta["input"], layout=layout)
        return program


def cheapest_layouts(programs: Sequence[Program], target: Target) -> Mapping[tuple[str, str], str]:
    """By graph and weight, for weights that are in none yet."""
    meshes = {graph: program.mesh for program in programs for graph in program.graphs.values()}
    names = {graph: name for program in programs for name, graph in program.graphs.items()}
    found = {}
    for weights in _same_weights(programs):
        layout = _cheapest(weights, meshes, target)
        found.update({(names[w.graph], tensor_of(w)): layout for w in weights})
    return found


def _same_weights(programs: Sequence[Program]) -> Iterator[frozenset[torch.fx.Node]]:
    """The placeholders that stand for a tensor: one in each program, and those of a layer for the tensors of all its calls."""
    group_of: dict[str | torch.fx.Node, frozenset[str | torch.fx.Node]] = {}
    for program in programs:
        for prefix, node in bound_weights(program):
            kind: Input = node.meta["input"]
            if kind.layout == ROWS:
                name = kind.tensor(prefix)
                joined = group_of.get(name, frozenset({name})) | group_of.get(node, frozenset({node}))
                group_of.update(dict.fromkeys(joined, joined))
    for group in dict.fromkeys(group_of.values()):
        yield frozenset(n for n in group if isinstance(n, torch.fx.Node))


def _cheapest(weights: frozenset[torch.fx.Node], meshes: Mapping[torch.fx.Graph, Mesh], target: Target) -> str:
    """Rows where no layout costs less. What only a reference can run costs more than anything else."""
    uses = [user for weight in weights for user in weight.users]
    if any(user.op != "call_function" for user in uses):  # another graph would have to know
        return ROWS
    first = next(iter(weights))
    dtype, shape = type_of(first).dtype, [int(d) for d in type_of(first).local(meshes[first.graph])]
    costs: dict[str, tuple[int, float]] = {}
    for layout in (ROWS, *sorted(_layouts_taken(weights, uses) - {ROWS})):
        best = [explain(call_of(meshes[user.graph], user, dict.fromkeys(weights, layout)), target)[0] for user in uses]
        if LAYOUTS[layout].takes(dtype, shape) and all(c.reason is None for c in best):
            costs[layout] = (sum(c.kernel.name == REFERENCE for c in best), sum(c.cost_seconds for c in best))
    return min(costs, key=lambda layout: costs[layout], default=ROWS)


def _layouts_taken(weights: frozenset[torch.fx.Node], uses: Sequence[torch.fx.Node]) -> set[str]:
    """What kernels of the ops that read the weights take there, of what the compiler may choose."""
    return {
        layout
        for user in uses
        for index, operand in enumerate(tensor_operands(user))
        for kernel in kernels(f"ts::{op_of(user)}")
        if operand in weights and (layout := kernel.layouts.get(index, ROWS)) in LAYOUTS and LAYOUTS[layout].is_chosen
    }
