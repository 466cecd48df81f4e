"""Make one op of the addition of a residual, of the sum over ranks that is added to it, and of the normalization of the result.

Assumes: runs after what joins products, which read what is normalized.
Guarantees: what is added and what is normalized lie side by side, and each is a view (`narrow`) of that; every rounding stays.
Does not: anything where the target has no kernel that makes use of it, or where that is not predicted to be quicker than the ops it stands
for; cross a graph, so that the last addition of a layer is joined with its sum alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.fx

from tsc.graph import JoinedType, NodeType, Program, operands, target_of
from tsc.mesh import Mesh
from tskernels.registry import Call
from tskernels.target import Target
from tspasses.kernel_calls import is_quicker, operand_of
from tspasses.nodes import is_op, is_result


@dataclass(frozen=True, slots=True)
class FuseResidual:
    target: Target
    name: ClassVar[str] = "fuse-residual"

    def run(self, program: Program) -> Program:
        mesh = program.mesh
        for graph in program.graphs.values():
            for node in list(graph.nodes):
                found = next((c for c in _choices(node) if is_quicker(c.call(mesh), c.nodes, mesh, self.target)), None)
                if found is not None:
                    _fuse(graph, mesh, found)
            graph.lint()
        return program


@dataclass(frozen=True, slots=True)
class _Addition:
    """x: what is added to the residual, or whose sum over ranks is, where that is `reduced`."""

    node: torch.fx.Node
    x: torch.fx.Node
    residual: torch.fx.Node
    reduced: torch.fx.Node | None
    norm: torch.fx.Node | None

    @property
    def nodes(self) -> list[torch.fx.Node]:
        return [n for n in (self.reduced, self.node, self.norm) if n is not None]

    @property
    def op(self) -> str:
        return ("all_reduce_" if self.reduced else "") + "add" + ("_norm" if self.norm else "")

    @property
    def operands(self) -> tuple[torch.fx.Node, ...]:
        return self.x, self.residual, *(operands(self.norm)[1:] if self.norm else ())

    @property
    def attributes(self) -> Mapping[str, Any]:
        axis = {"axis": self.reduced.kwargs["axis"]} if self.reduced else {}
        return axis | (self.norm.kwargs if self.norm else {})

    def call(self, mesh: Mesh) -> Call:
        return Call(f"ts::{self.op}", tuple(operand_of(mesh, n) for n in self.operands), self.attributes)


def _choices(node: torch.fx.Node) -> Iterator[_Addition]:
    """What an addition may be joined with, the most first."""
    if not is_op(node, "add") or not _has_rows(node):
        return
    first, second = operands(node)
    norm = _norm_of(node)
    for reduced, residual in ((first, second), (second, first)):
        if _is_sum(reduced) and residual is not reduced:
            found = _Addition(node, operands(reduced)[0], residual, reduced, norm)
            yield from (found, replace(found, norm=None)) if norm else (found,)
            break
    if norm:
        yield _Addition(node, second, first, None, norm)


def _norm_of(node: torch.fx.Node) -> torch.fx.Node | None:
    """What normalizes the value, where both may be views, which have no place of their own as a result has."""
    norms = [user for user in node.users if is_op(user, "rms_norm") and operands(user)[1].op == "placeholder"]
    return norms[0] if norms and not is_result(node) and not is_result(norms[0]) else None


def _is_sum(node: torch.fx.Node) -> bool:
    return is_op(node, "all_reduce") and node.kwargs["reduction"] == "sum" and len(node.users) == 1


def _has_rows(node: torch.fx.Node) -> bool:
    kind = node.meta["type"]
    return isinstance(kind, NodeType) and len(kind.shape.groups) == 2


def _fuse(graph: torch.fx.Graph, mesh: Mesh, found: _Addition) -> None:
    if found.norm:
        _join(graph, mesh, found, found.norm)
    else:
        found.node.target = target_of(found.op)
        found.node.args = found.operands
        found.node.kwargs = found.attributes  # type: ignore[assignment]
    for node in reversed(found.nodes):
        if not node.users:
            graph.erase_node(node)


def _join(graph: torch.fx.Graph, mesh: Mesh, found: _Addition, norm: torch.fx.Node) -> None:
    parts: tuple[NodeType, NodeType] = (found.node.meta["type"], norm.meta["type"])
    width = int(parts[0].local(mesh)[1])
    with graph.inserting_before(found.node):
        name = f"{found.node.name}_{norm.name}"
        joint = graph.create_node("call_function", target_of(found.op), found.operands, dict(found.attributes), name=name)
        joint.meta.update(type=JoinedType(parts, 1), span=found.nodes[0].meta["span"])
        for start, node in ((0, found.node), (width, norm)):
            view = graph.create_node(
                "call_function", target_of("narrow"), (joint,), {"start": start, "length": width}, name=f"{node.name}_part"
            )
            view.meta.update(type=node.meta["type"], span=node.meta["span"])
            if "returned" in node.meta:
                view.meta["returned"] = node.meta["returned"]
            node.replace_all_uses_with(view)
