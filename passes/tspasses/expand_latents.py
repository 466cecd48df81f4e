"""Attend to the latents of long chunks expanded into a key and a value for each head, and to the others as the model says, absorbed.

Assumes: a model absorbs its up-projections: a product of the queries before, one of the result after. Types and layouts are the caches'.
Guarantees: a sequence's rows are computed in one of the two ways, by how many new tokens it has (`tskernels/expansion.py`); the numbers are
the same but for rounding.
Does not: anything where the target has no kernel for it. On CPUs a sequence's bits must not depend on its chunks: there all is absorbed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.fx

from tsc.graph import Program, op_of, operands, target_of, type_of
from tsc.mesh import Mesh
from tskernels.equation import parsed
from tskernels.expansion import break_even
from tskernels.registry import REFERENCE, explain
from tskernels.target import Target
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class Absorbed:
    """Latent attention between two products with up-projections: `absorbed` makes its queries of `content`, `up` its results' values."""

    absorbed: torch.fx.Node
    latent: torch.fx.Node
    up: torch.fx.Node

    @property
    def content(self) -> torch.fx.Node:
        return operands(self.absorbed)[0]

    @property
    def k_up(self) -> torch.fx.Node:
        return operands(self.absorbed)[1]

    @property
    def v_up(self) -> torch.fx.Node:
        return operands(self.up)[1]


@dataclass(frozen=True, slots=True)
class ExpandLatents:
    """expanded_from: new tokens from which on a sequence is expanded; None: where that takes fewer multiplications."""

    target: Target
    expanded_from: int | None = None
    name: ClassVar[str] = "expand-latents"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            for node in list(graph.nodes):
                found = absorbed_by(node)
                if found is not None and len(node.users) > 0:
                    self._expand(program.mesh, graph, found)
            graph.lint()
        return program

    def _expand(self, mesh: Mesh, graph: torch.fx.Graph, found: Absorbed) -> None:
        latent = found.latent
        expanded_from = self.expanded_from or _break_even(mesh, found)
        if not expanded_from or latent.kwargs["window"] or "expanded_from" in latent.kwargs:
            return
        _, rotated, cache, *step = operands(latent)
        given = {name: number for name, number in latent.kwargs.items() if name != "window"}
        with graph.inserting_after(found.up):
            node = graph.create_node(
                "call_function",
                target_of("expanded_attention"),
                (found.up, found.content, rotated, cache, found.k_up, found.v_up, *step),
                {**given, "expanded_from": expanded_from},
                name=f"{found.up.name}_all",
            )
        node.meta.update(type=found.up.meta["type"], span=latent.meta["span"])
        best = explain(call_of(mesh, node), self.target)[0]
        if best.reason is not None or best.kernel.name == REFERENCE:
            graph.erase_node(node)
            return
        found.up.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        latent.kwargs = {**latent.kwargs, "expanded_from": expanded_from}


def absorbed_by(node: torch.fx.Node) -> Absorbed | None:
    """The three ops of which the node is the last."""
    if not _is_product(node):
        return None
    latent = operands(node)[0]
    if latent.op != "call_function" or op_of(latent) != "latent_attention" or not _is_product(operands(latent)[0]):
        return None
    return Absorbed(operands(latent)[0], latent, node)


def _is_product(node: torch.fx.Node) -> bool:
    """Of each head's row with a matrix of its own, `tha,hac->thc` or `thc,hec->the`, in which there is nothing to sum over ranks."""
    if node.op != "call_function" or op_of(node) != "einsum":
        return False
    e = parsed(str(node.kwargs["equation"]))
    return (len(e.x), len(e.y)) == (3, 3) and e.x[:2] == e.out[:2] and e.y[0] == e.x[1] == e.batch and e.x[2] == e.summed


def _break_even(mesh: Mesh, found: Absorbed) -> int:
    rotated = operands(found.latent)[1]
    return break_even(*(int(type_of(n).local(mesh)[2]) for n in (found.content, rotated, found.absorbed, found.up)))
