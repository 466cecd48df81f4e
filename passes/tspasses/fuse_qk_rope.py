"""Make one op of what turns queries and keys, the first two parts of a joined product, and of the norms of their heads before that.

Assumes: runs after FuseLinears, which joins the products.
Guarantees: what is turned lies side by side, and each part is a view (`narrow`) of that, as it was of the product; every rounding stays.
Does not: anything where the target has no kernel for it, or where that is not predicted to be quicker than the ops it stands for; turn
heads of two products, or in two ways; join a norm of anything but heads, or what appends the keys to a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch.fx

from tsc.graph import JoinedType, Program, node_type, operands, target_of, type_of
from tsc.mesh import Mesh
from tskernels.registry import Call
from tskernels.target import Target
from tspasses.kernel_calls import is_quicker, operand_of
from tspasses.nodes import is_op, is_result


@dataclass(frozen=True, slots=True)
class FuseQkRope:
    target: Target
    name: ClassVar[str] = "fuse-qk-rope"

    def run(self, program: Program) -> Program:
        mesh = program.mesh
        for graph in program.graphs.values():
            for found in list(_turns(graph, mesh)):
                if is_quicker(found.call(mesh), found.nodes, mesh, self.target):
                    _fuse(graph, mesh, found)
            graph.lint()
        return program


@dataclass(frozen=True, slots=True)
class _Heads:
    """A part of a product as heads, which a norm, if there is one, and a rope alone read."""

    part: torch.fx.Node
    split: torch.fx.Node
    norm: torch.fx.Node | None
    rope: torch.fx.Node

    @property
    def way(self) -> tuple[Any, ...]:
        """What is the same of heads that are turned together."""
        return operands(self.rope)[1], dict(self.rope.kwargs), dict(self.norm.kwargs) if self.norm else None

    def count_and_width(self, mesh: Mesh) -> tuple[int, int]:
        _, *count, width = node_type(self.split).local(mesh)
        return prod(map(int, count)), int(width)


@dataclass(frozen=True, slots=True)
class _Turns:
    queries: _Heads
    keys: _Heads

    @property
    def heads(self) -> tuple[_Heads, _Heads]:
        return self.queries, self.keys

    @property
    def nodes(self) -> list[torch.fx.Node]:
        return [n for heads in self.heads for n in (heads.norm, heads.rope) if n]

    @property
    def op(self) -> str:
        return "qk_norm_rope" if self.queries.norm else "qk_rope"

    @property
    def operands(self) -> tuple[torch.fx.Node, ...]:
        norms = (operands(heads.norm)[1] for heads in self.heads if heads.norm)
        return operands(self.queries.part)[0], operands(self.queries.rope)[1], *norms

    def attributes(self, mesh: Mesh) -> Mapping[str, Any]:
        (queries, width), (keys, _) = (heads.count_and_width(mesh) for heads in self.heads)
        norm = self.queries.norm.kwargs if self.queries.norm else {}
        return {"q_heads": queries, "k_heads": keys, "width": width, **norm, **self.queries.rope.kwargs}

    def call(self, mesh: Mesh) -> Call:
        return Call(f"ts::{self.op}", tuple(operand_of(mesh, n) for n in self.operands), self.attributes(mesh))


def _turns(graph: torch.fx.Graph, mesh: Mesh) -> Iterator[_Turns]:
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(type_of(node), JoinedType):
            continue
        parts = sorted((user for user in node.users if is_op(user, "narrow")), key=lambda part: part.kwargs["start"])
        heads = [found for found in map(_heads, parts[:2]) if found]
        if len(heads) == 2 and parts[0].kwargs["start"] == 0 and parts[1].kwargs["start"] == parts[0].kwargs["length"]:
            queries, keys = heads
            if queries.way == keys.way and queries.count_and_width(mesh)[1] == keys.count_and_width(mesh)[1]:
                yield _Turns(queries, keys)


def _heads(part: torch.fx.Node) -> _Heads | None:
    split = _reader(part, "split")
    norm = split and _reader(split, "rms_norm")
    last = norm or split
    rope = last and _reader(last, "rope")
    return _Heads(part, split, norm, rope) if split and rope and not is_result(rope) else None


def _reader(node: torch.fx.Node, op: str) -> torch.fx.Node | None:
    """What alone reads the value, if it is this op."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and is_op(readers[0], op) else None


def _fuse(graph: torch.fx.Graph, mesh: Mesh, found: _Turns) -> None:
    ropes = [heads.rope for heads in found.heads]
    types = (node_type(found.queries.part), node_type(found.keys.part))
    with graph.inserting_before(next(node for node in graph.nodes if node in ropes)):
        joint = graph.create_node(
            "call_function", target_of(found.op), found.operands, dict(found.attributes(mesh)), name="_".join(r.name for r in ropes)
        )
        joint.meta.update(type=JoinedType(types, 1), span=ropes[0].meta["span"])
        for heads in found.heads:
            view = joint
            for node, name in ((heads.part, "part"), (heads.split, "split")):
                view = graph.create_node("call_function", node.target, (view,), dict(node.kwargs), name=f"{heads.rope.name}_{name}")
                view.meta.update(type=node.meta["type"], span=heads.rope.meta["span"])
            if "returned" in heads.rope.meta:
                view.meta["returned"] = heads.rope.meta["returned"]
            heads.rope.replace_all_uses_with(view)
    for heads in found.heads:
        for unread in (heads.rope, heads.norm, heads.split, heads.part):
            if unread:
                graph.erase_node(unread)
