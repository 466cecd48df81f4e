"""What a collective costs: latency and bandwidth terms of the usual algorithms over a named topology.

The constants are models of links, not measurements of yours; `tsc plan` prints them beside its times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tsc.mesh import Mesh
from tsc.types import Placement, Shape
from tspasses.transitions import COLLECTIVES, Move

DTYPE_BYTES: Mapping[str, int] = {"bf16": 2, "f16": 2, "f32": 4, "i32": 4}
NOMINAL = 4096
"""Stands for an extent that is not known when there is no config, so that placements can still be compared."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A link between ranks: seconds to start a collective, seconds a hop, bytes per second of a rank."""

    name: str
    launch_seconds: float
    hop_seconds: float
    bytes_per_second: float


TOPOLOGIES: Mapping[str, Topology] = {
    t.name: t
    for t in (
        Topology("h100-nvlink", 4e-6, 1e-6, 360e9),
        Topology("b200-nvlink", 4e-6, 1e-6, 720e9),
        Topology("pcie5", 8e-6, 2e-6, 45e9),
        Topology("host", 20e-6, 10e-6, 8e9),
    )
}
DEFAULT_TOPOLOGY = TOPOLOGIES["h100-nvlink"]


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
    """Ring or one-shot all-reduce, whichever is faster; rings for the others. Local moves are free."""
    if move.kind not in COLLECTIVES:
        return 0.0
    hops, b = ranks - 1, payload_bytes / topology.bytes_per_second
    match move.kind:
        case "all_reduce":
            ring = 2 * hops * topology.hop_seconds + 2 * hops / ranks * b
            return topology.launch_seconds + min(ring, topology.hop_seconds + hops * b)
        case "all_to_all":
            return topology.launch_seconds + hops * topology.hop_seconds + hops / ranks * b
        case _:
            return topology.launch_seconds + hops * topology.hop_seconds + hops / ranks * b
