"""The cheapest way from one placement of a value to another: shortest paths over its placements, a move an edge.

A direct way is not always the cheapest: two axes that need an all-reduce and a reduce-scatter are better reduced together and cut. And
what is no single move may be several: a block becomes a summand by way of the whole value.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from tsc.mesh import Mesh
from tsc.types import AxisPlacement, Placement, Shape
from tspasses.transitions import Move, divides, in_order, move_of, moved

Cost = tuple[int, int, int, int]
"""(picoseconds, payload bytes, collectives over tokens, number of moves): compared in this order, then by source order; integers, so
sums are exact. A step has at least as many tokens as sequences, so of two that cost the same the one over sequences is better."""

Price = Callable[[Placement, Move], Cost | None]
"""What a move costs from a placement; None where it may not be made."""

NOTHING: Cost = (0, 0, 0, 0)


def plus(a: Cost, b: Cost) -> Cost:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def route(shape: Shape, mesh: Mesh, source: Placement, target: Placement, price: Price) -> tuple[tuple[Move, ...], Cost] | None:
    """The cheapest legal moves from `source` to `target`, and their cost; None where nothing leads there. Of equals the first found."""
    waiting: list[tuple[Cost, int, Placement, tuple[Move, ...]]] = [(NOTHING, 0, source, ())]
    numbers = itertools.count(1)
    done: set[Placement] = set()
    while waiting:
        cost, _, now, path = heapq.heappop(waiting)
        if now == target:
            return path, cost
        if now in done:
            continue
        done.add(now)
        for move, then in _steps(shape, mesh, now, source, target):
            if then not in done and (more := price(now, move)) is not None:
                heapq.heappush(waiting, (plus(cost, more), next(numbers), then, (*path, move)))
    return None


def _steps(shape: Shape, mesh: Mesh, now: Placement, source: Placement, target: Placement) -> Iterator[tuple[Move, Placement]]:
    """Each single move from `now`, of any axes that are alike, towards a placement that an axis has at one of the ends, or the whole."""
    names = [a.name for a in mesh.active]
    for count in range(len(names), 0, -1):
        for axes in itertools.combinations(range(len(names)), count):
            old = now[axes[0]]
            if any(now[a] != old for a in axes):
                continue
            ends: dict[AxisPlacement, None] = dict.fromkeys([None, *(p for a in axes for p in (source[a], target[a]))])
            for new in ends:
                move = move_of(old, new, tuple(names[a] for a in axes)) if new != old else None
                if move is None:
                    continue
                then = moved(mesh, now, move)
                if in_order(shape, names, now, then, move) and divides(shape, mesh, then):
                    yield move, then
