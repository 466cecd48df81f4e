"""What it takes to turn one placement of a value into another: the collectives, or that there is no legal way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tsc.mesh import Mesh
from tsc.types import SPLITTABLE, AxisPlacement, Placement, Shape

Kind = Literal["local_slice", "keep_first", "reduce_scatter", "all_to_all", "all_reduce", "all_gather"]
COLLECTIVES: tuple[Kind, ...] = ("reduce_scatter", "all_to_all", "all_reduce", "all_gather")
"""The kinds that talk to other ranks; the rest are local."""

_ORDER: tuple[Kind, ...] = ("local_slice", "keep_first", *COLLECTIVES)


@dataclass(frozen=True, slots=True)
class Move:
    """One op over the flattened `axes`. `source` is the factor that is joined, `target` the one that is split."""

    kind: Kind
    axes: tuple[str, ...]
    reduction: str = ""
    source: int | None = None
    target: int | None = None


def moves(shape: Shape, mesh: Mesh, before: Placement, after: Placement) -> tuple[Move, ...] | None:
    """The cheapest sequence from `before` to `after`, empty when they are equal, None when nothing legal leads there."""
    if before == after:
        return ()
    return _moves(shape, mesh.active, before, after)


@lru_cache(maxsize=65536)
def _moves(shape: Shape, active: tuple[object, ...], before: Placement, after: Placement) -> tuple[Move, ...] | None:
    names = [a.name for a in active]  # type: ignore[attr-defined]
    changes: dict[tuple[AxisPlacement, AxisPlacement], list[str]] = {}
    for name, old, new in zip(names, before, after, strict=True):
        if old != new:
            changes.setdefault((old, new), []).append(name)
    found = []
    for (old, new), axes in changes.items():
        move = _move(old, new, tuple(axes))
        if move is None or not _in_order(shape, names, before, after, move):
            return None
        found.append(move)
    return tuple(sorted(found, key=lambda m: _ORDER.index(m.kind)))


def _move(old: AxisPlacement, new: AxisPlacement, axes: tuple[str, ...]) -> Move | None:
    match old, new:
        case None, int():
            return Move("local_slice", axes, target=new)
        case None, "sum":
            return Move("keep_first", axes)
        case int(), None:
            return Move("all_gather", axes, source=old)
        case int(), int():
            return Move("all_to_all", axes, source=old, target=new)
        case str(), None:
            return Move("all_reduce", axes, reduction=old)
        case "sum", int():
            return Move("reduce_scatter", axes, reduction="sum", target=new)
        case _:
            return None  # a block is no summand, a sum no maximum


def _in_order(shape: Shape, names: list[str], before: Placement, after: Placement, move: Move) -> bool:
    """Blocks stay in rank order: only the minor-most axes of a factor can be joined or split, and a factor must be a dimension."""
    for factor, placement in ((move.source, before), (move.target, after)):
        if factor is None:
            continue
        holders = [n for n, p in zip(names, placement, strict=True) if p == factor]
        if tuple(holders[len(holders) - len(move.axes) :]) != move.axes:
            return False
        if any(count != 1 for count in shape.groups):
            return False
    return True


def divides(shape: Shape, mesh: Mesh, placement: Placement) -> bool:
    """Whether every split factor has a known extent, or a symbolic one, that its ranks divide; of the dynamic ones only the
    tokens, which a step pads."""
    for index, factor in enumerate(shape.factors):
        axes = [a for a, p in zip(mesh.active, placement, strict=True) if p == index]
        if axes and factor.is_dynamic and factor.name != SPLITTABLE:
            return False
        if axes and factor.size is not None and factor.size % math.prod(a.size or 1 for a in axes):
            return False
    return True
