"""What a collective costs: bytes of payload, and seconds over a topology, measured or by the usual latency and bandwidth terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tsc.mesh import Mesh
from tsc.types import Placement, Shape
from tspasses.topology import Topology
from tspasses.transitions import COLLECTIVES, Move

DTYPE_BYTES: Mapping[str, int] = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "i32": 4, "i64": 8}
NOMINAL = 4096
"""Stands for an extent that is not known when there is no config, so that placements can still be compared."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of the logical value that a collective moves, per row of its dynamic dimension (`T`, `S`, or `""`: none)."""

    per_row: int
    row: str


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
    Local moves are free."""
    if move.kind not in COLLECTIVES:
        return 0.0
    measured = topology.measured(move.kind, ranks, payload_bytes)
    if measured is not None:
        return measured
    hops, b = ranks - 1, payload_bytes / topology.bytes_per_second
    if move.kind == "all_reduce":
        ring = 2 * hops * topology.hop_seconds + 2 * hops / ranks * b
        return topology.launch_seconds + min(ring, topology.hop_seconds + hops * b)
    return topology.launch_seconds + hops * topology.hop_seconds + hops / ranks * b
