"""Give every intermediate a place in an arena that is planned once for all step sizes.

Offsets and sizes are bytes per row (token or sequence), multiples of 64, so the plan holds for any step and addresses stay aligned.
Assumes: kernels are selected. Guarantees: values that are alive at once never overlap; a view keeps its base alive; a callee's
nodes lie above everything of its caller that is alive during the call, and its result lies where the caller wants it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.fx

from tsc.graph import Program, Storage, op_of, operands, output_node, type_of
from tsc.mesh import Mesh
from tskernels.dtypes import size_bytes
from tskernels.registry import lookup

ALIGNMENT = 64
Region = Literal["T", "S"]


@dataclass(frozen=True, slots=True)
class PlanMemory:
    name: ClassVar[str] = "plan-memory"

    def run(self, program: Program) -> Program:
        frames: dict[str, tuple[int, int]] = {}
        for name, graph in program.graphs.items():  # callees come before the entry
            frames[name] = _plan(program.mesh, graph, frames, is_entry=name == program.entry)
        program.frames = frames
        return program


def is_alias(node: torch.fx.Node) -> bool:
    """Whether a node's result is its first operand's storage: views, and ops that write in place."""
    return node.op == "call_function" and lookup(f"ts::{op_of(node)}", node.meta["kernel"]).kind in ("view", "inplace")


def row_bytes(mesh: Mesh, node: torch.fx.Node) -> tuple[Region, int]:
    """A value's region and its bytes per row, rounded up to the alignment."""
    kind = type_of(node)
    rows, *rest = kind.local(mesh)
    region, _, ranks = str(rows).partition("/")
    assert region in ("T", "S"), f"%{node.name} has no rows: {kind.text(mesh)}"
    size = -(-math.prod(int(d) for d in rest) * size_bytes(kind.dtype) // int(ranks or 1))
    return region, -(-size // ALIGNMENT) * ALIGNMENT  # type: ignore[return-value]


def _plan(mesh: Mesh, graph: torch.fx.Graph, frames: dict[str, tuple[int, int]], *, is_entry: bool) -> tuple[int, int]:
    nodes = [n for n in graph.nodes if n.op in ("call_function", "call_module")]
    position = {n: i for i, n in enumerate(nodes)}
    base: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in nodes:
        base[node] = base.get(operands(node)[0], operands(node)[0]) if is_alias(node) else node
    last = {b: position.get(b, -1) for b in base.values()}
    for node in nodes:
        for operand in operands(node):
            root = base.get(operand, operand)
            last[root] = max(last.get(root, -1), position[node])
    result = output_node(graph)
    last[base.get(result, result)] = len(nodes)
    live: dict[Region, list[tuple[int, int, torch.fx.Node]]] = {"T": [], "S": []}
    top: dict[Region, int] = {"T": 0, "S": 0}
    for index, node in enumerate(nodes):
        if is_alias(node):
            continue
        for region in live:
            live[region] = [b for b in live[region] if last[b[2]] >= index]
        if node is result and not is_entry:
            continue  # the caller says where; of a view it takes a copy
        region, size = row_bytes(mesh, node)
        offset = _first_gap(live[region], size)
        live[region].append((offset, size, node))
        live[region].sort(key=lambda b: b[:2])
        top[region] = max(top[region], offset + size)
        frame = (0, 0)
        if node.op == "call_module":
            frame = tuple(max((o + s for o, s, _ in live[r]), default=0) for r in ("T", "S"))  # type: ignore[assignment]
            inner = frames[node.meta["call"].graph]
            top = {"T": max(top["T"], frame[0] + inner[0]), "S": max(top["S"], frame[1] + inner[1])}
        node.meta["storage"] = Storage(region, offset, frame)
    return top["T"], top["S"]


def _first_gap(live: list[tuple[int, int, torch.fx.Node]], size: int) -> int:
    """The lowest offset at which `size` bytes fit between the live blocks, which are sorted."""
    offset = 0
    for start, length, _ in live:
        if start - offset >= size:
            break
        offset = max(offset, start + length)
    return offset
