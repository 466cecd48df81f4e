"""The moves that turn one placement of a value into another: the collectives, and what a rank does alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tsc.mesh import Mesh
from tsc.types import SPLITTABLE, AxisPlacement, Placement, Shape

Kind = Literal["local_slice", "keep_first", "reduce_scatter", "all_to_all", "all_reduce", "all_gather"]
COLLECTIVES: tuple[Kind, ...] = ("reduce_scatter", "all_to_all", "all_reduce", "all_gather")
"""The kinds that talk to other ranks; the rest are local."""


@dataclass(frozen=True, slots=True)
class Move:
    """One op over the flattened `axes`. `source` is the factor that is joined, `target` the one that is split."""

    kind: Kind
    axes: tuple[str, ...]
    reduction: str = ""
    source: int | None = None
    target: int | None = None


def move_of(old: AxisPlacement, new: AxisPlacement, axes: tuple[str, ...]) -> Move | None:
    """The one move that turns `old` into `new` on these axes, None where there is none."""
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


def single_move(shape: Shape, mesh: Mesh, before: Placement, after: Placement) -> Move | None:
    """The move that alone leads from `before` to `after`."""
    changed = [(a.name, old, new) for a, old, new in zip(mesh.active, before, after, strict=True) if old != new]
    if len({(old, new) for _, old, new in changed}) != 1:
        return None
    move = move_of(changed[0][1], changed[0][2], tuple(name for name, _, _ in changed))
    names = [a.name for a in mesh.active]
    return move if move is not None and in_order(shape, names, before, after, move) else None


def moved(mesh: Mesh, placement: Placement, move: Move) -> Placement:
    """What a move makes of a placement."""
    place = "sum" if move.kind == "keep_first" else move.target
    return tuple(place if a.name in move.axes else p for a, p in zip(mesh.active, placement, strict=True))


def in_order(shape: Shape, names: list[str], before: Placement, after: Placement, move: Move) -> bool:
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
        if axes and factor.is_dynamic and factor.name not in SPLITTABLE:
            return False
        if axes and factor.size is not None and factor.size % math.prod(a.size or 1 for a in axes):
            return False
    return True
