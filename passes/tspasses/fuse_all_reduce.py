"""Make one op of a sum over ranks, the addition of a residual to it, and the normalization of that.

Assumes: runs after what joins products, which read what is normalized.
Guarantees: what is added and what is normalized lie side by side, and each is a view (`narrow`) of that; every rounding stays.
Does not: anything where the target has no kernel that makes use of it, or where that is not predicted to be quicker than the ops it stands
for; cross a graph, so that the last sum of a layer is joined with its residual alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.fx

from tsc.graph import JoinedType, NodeType, Program, op_of, operands, target_of
from tsc.mesh import Mesh
from tskernels.registry import REFERENCE, Call, Candidate, explain
from tskernels.target import Target
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class FuseAllReduce:
    target: Target
    name: ClassVar[str] = "fuse-all-reduce"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            for found in list(_sums(graph)):
                if found.norm is not None and self._is_quicker(program.mesh, found.norm_call(program.mesh), found.nodes):
                    _fuse_norm(graph, program.mesh, found, found.norm)
                elif self._is_quicker(program.mesh, found.add_call(program.mesh), found.nodes[:2]):
                    _fuse_add(graph, found)
            graph.lint()
        return program

    def _is_quicker(self, mesh: Mesh, fused: Call, nodes: Sequence[torch.fx.Node]) -> bool:
        best = self._best(fused)
        if best.reason is not None or best.kernel.name == REFERENCE:
            return False
        return best.cost_seconds < sum(self._best(call_of(mesh, node)).cost_seconds for node in nodes)

    def _best(self, call: Call) -> Candidate:
        return explain(call, self.target)[0]


@dataclass(frozen=True, slots=True)
class _Sum:
    reduced: torch.fx.Node
    add: torch.fx.Node
    norm: torch.fx.Node | None

    @property
    def residual(self) -> torch.fx.Node:
        """What the sum is added to; a view, where that was made by another sum."""
        return next(n for n in operands(self.add) if n is not self.reduced)

    @property
    def nodes(self) -> list[torch.fx.Node]:
        return [self.reduced, self.add, *([] if self.norm is None else [self.norm])]

    def add_call(self, mesh: Mesh) -> Call:
        return Call("ts::all_reduce_add", call_of(mesh, self.add).operands, {"axis": self.reduced.kwargs["axis"]})

    def norm_call(self, mesh: Mesh) -> Call:
        assert self.norm is not None
        added, norm = self.add_call(mesh), call_of(mesh, self.norm)
        return Call("ts::all_reduce_add_norm", (*added.operands, norm.operands[1]), {**added.attributes, **norm.attributes})


def _sums(graph: torch.fx.Graph) -> Iterator[_Sum]:
    for node in graph.nodes:
        if not _is(node, "add"):
            continue
        first, second = operands(node)
        for reduced, residual in ((first, second), (second, first)):
            is_sum = _is(reduced, "all_reduce") and reduced.kwargs["reduction"] == "sum" and len(reduced.users) == 1
            if is_sum and residual is not reduced and _has_rows(node):
                norms = [user for user in node.users if _is(user, "rms_norm") and operands(user)[1].op == "placeholder"]
                is_alone = not _is_result(node)
                yield _Sum(reduced, node, norms[0] if norms and is_alone and not _is_result(norms[0]) else None)
                break


def _is(node: torch.fx.Node, op: str) -> bool:
    return node.op == "call_function" and op_of(node) == op


def _has_rows(node: torch.fx.Node) -> bool:
    kind = node.meta["type"]
    return isinstance(kind, NodeType) and len(kind.shape.groups) == 2


def _is_result(node: torch.fx.Node) -> bool:
    """It has a place of its own, which a view has not."""
    return any(user.op == "output" for user in node.users)


def _fuse_add(graph: torch.fx.Graph, found: _Sum) -> None:
    found.add.target = target_of("all_reduce_add")
    found.add.args = (operands(found.reduced)[0], found.residual)
    found.add.kwargs = {"axis": found.reduced.kwargs["axis"]}
    graph.erase_node(found.reduced)


def _fuse_norm(graph: torch.fx.Graph, mesh: Mesh, found: _Sum, norm: torch.fx.Node) -> None:
    parts: tuple[NodeType, NodeType] = (found.add.meta["type"], norm.meta["type"])
    width = int(parts[0].local(mesh)[1])
    with graph.inserting_before(found.add):
        given = (operands(found.reduced)[0], found.residual, operands(norm)[1])
        attributes = {"axis": found.reduced.kwargs["axis"], **norm.kwargs}
        joint = graph.create_node(
            "call_function", target_of("all_reduce_add_norm"), given, attributes, name=f"{found.add.name}_{norm.name}"
        )
        joint.meta.update(type=JoinedType(parts, 1), span=found.reduced.meta["span"])
        for start, node in ((0, found.add), (width, norm)):
            view = graph.create_node(
                "call_function", target_of("narrow"), (joint,), {"start": start, "length": width}, name=f"{node.name}_part"
            )
            view.meta.update(type=node.meta["type"], span=node.meta["span"])
            if "returned" in node.meta:
                view.meta["returned"] = node.meta["returned"]
            node.replace_all_uses_with(view)
    for node in (norm, found.add, found.reduced):
        graph.erase_node(node)
