"""What a collective costs: bytes of payload, and seconds over a topology, measured or by the usual latency and bandwidth terms; and what
an op costs a rank, by what it moves and multiplies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsc.mesh import Mesh
from tsc.program import Operation
from tsc.types import PAGES, Placement, Shape
from tspasses.topology import Topology
from tspasses.transitions import Move

DTYPE_BYTES: Mapping[str, int] = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "i32": 4, "i64": 8}
NOMINAL = 4096
"""Stands for an extent that is not known when there is no config, so that placements can still be compared."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of the logical value that a collective moves, per row of its dynamic dimension (`T`, `S`, or `""`: none)."""

    per_row: int
    row: str


@dataclass(frozen=True, slots=True)
class Machine:
    """One rank: bytes through its memory and operations in a second, and the model's element type."""

    bytes_per_second: float
    flops: float
    dtype: str


def payload(shape: Shape, mesh: Mesh, placement: Placement, move: Move, dtype: str) -> Payload:
    """all_reduce: the tensor on a rank; all_gather: the gathered output; reduce_scatter: the whole input; all_to_all: the local input."""
    sizes = {a.name: a.known_size for a in mesh.active}
    split = {n: p for n, p in zip(sizes, placement, strict=True) if isinstance(p, int)}
    elements, row, shares = 1, "", 1
    for index, factor in enumerate(shape.factors):
        ranks = math.prod(sizes[n] for n, p in split.items() if p == index and not (move.kind == "all_gather" and n in move.axes))
        if factor.is_dynamic:
            row, shares = factor.name, ranks
        else:
            elements *= (factor.size or NOMINAL) // ranks
    return Payload(-(-elements * DTYPE_BYTES[shape.dtype or dtype] // shares), row)


def seconds(move: Move, ranks: int, payload_bytes: float, topology: Topology) -> float:
    """A measurement of the topology where it has one, else ring or one-shot all-reduce, whichever is faster, and rings for the others.
    Not of local moves: see `copy_seconds`."""
    measured = topology.measured(move.kind, ranks, payload_bytes)
    if measured is not None:
        return measured
    hops, b = ranks - 1, payload_bytes / topology.bytes_per_second
    if move.kind == "all_reduce":
        ring = 2 * hops * topology.hop_seconds + 2 * hops / ranks * b
        return topology.launch_seconds + min(ring, topology.hop_seconds + hops * b)
    return topology.launch_seconds + hops * topology.hop_seconds + hops / ranks * b


FREE = ("pin", "keep", "call", "slice", "unflatten")
"""Ops that compute nothing of their own: a callee's ops are costed where they are."""

LOOKUPS = ("embedding", "take_rows")
"""Ops that read of their operands only what they give."""


def op_seconds(
    operation: Operation,
    shapes: Sequence[Shape],
    placements: Sequence[Placement],
    mesh: Mesh,
    rows: Mapping[str, int],
    machine: Machine,
    read: float = 1.0,
) -> float:
    """Of one rank: its bytes through memory or its multiplications, whichever take longer. shapes and placements: of the operands, then
    of the result; rows: tokens and sequences in the step; read: the share of experts that have a token. What attention reads of a
    cache is left out: a rank's part of that is declared."""
    if operation.op in FREE:
        return 0.0
    sizes = [_local_extents(s, p, mesh, rows) for s, p in zip(shapes, placements, strict=True)]
    counted = [(s, e) for s, e in zip(shapes, sizes, strict=True) if not (s.factors and s.factors[0].name == PAGES)]
    if operation.op in LOOKUPS:
        counted = [(shapes[-1], sizes[-1])] * 2
    bytes_of = [math.prod(e) * DTYPE_BYTES[s.dtype or machine.dtype] for s, e in counted]
    moved = sum(bytes_of) - (1 - read) * sum(bytes_of[2:-1]) if operation.op == "experts" else sum(bytes_of)
    multiplies = 0.0
    if operation.op in ("linear", "einsum"):
        labels = zip(operation.signature.operands[1], sizes[1], strict=True)
        multiplies = 2.0 * math.prod(sizes[-1]) * math.prod(n for label, n in labels if label in operation.signature.summed)
    return max(moved / machine.bytes_per_second, multiplies / machine.flops)


def copy_seconds(shape: Shape, made: Placement, mesh: Mesh, rows: Mapping[str, int], machine: Machine) -> float:
    """Of a move that a rank makes alone: what it then has is read and written."""
    return 2.0 * math.prod(_local_extents(shape, made, mesh, rows)) * DTYPE_BYTES[shape.dtype or machine.dtype] / machine.bytes_per_second


def _local_extents(shape: Shape, placement: Placement, mesh: Mesh, rows: Mapping[str, int]) -> list[int]:
    ranks = [1] * len(shape.factors)
    for axis, place in zip(mesh.active, placement, strict=True):
        if isinstance(place, int):
            ranks[place] *= axis.known_size
    whole = [rows.get(f.name, f.size or NOMINAL) for f in shape.factors]
    return [-(-n // r) for n, r in zip(whole, ranks, strict=True)]
