"""Plans by the number of tokens in a step: which one is cheapest for few tokens, which for many, and where it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tsc.program import TypedModel
from tspasses.place import place
from tspasses.placed import Options, PlacedInstance, PlacedModel
from tspasses.transitions import COLLECTIVES, Move

LARGEST = 65536
"""Tokens of the largest step that is looked at."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Steps of `first` to `last` tokens have the collectives of `placed`, which was placed at `first`."""

    first: int
    last: int
    placed: PlacedModel


Progress = Callable[[int], None]
"""Called with each number of tokens that the model is placed for."""


def plan_set(typed: TypedModel, options: Options, largest: int = LARGEST, progress: Progress = lambda tokens: None) -> Sequence[Bucket]:
    """The buckets from one token to `largest`, thresholds exact to the token between powers of two that differ. A plan that is
    cheapest only strictly between two powers of two is not found. Raises CompileError."""
    at = _placing(typed, options, progress)
    starts = _changes(typed, at, [1 << i for i in range(largest.bit_length())])
    exact = starts[:1]
    for (_, known), (high, placed) in pairwise(starts):
        low = high // 2
        while high - low > 1:  # the first count that has another plan than the bucket before
            middle = (low + high) // 2
            found = at(middle)
            if _same(found, known):
                low = middle
            else:
                high, placed = middle, found
        exact.append((high, placed))
    return _buckets(exact, largest)


def coarse_plan_set(placed: PlacedModel, largest: int = LARGEST // 4, progress: Progress = lambda tokens: None) -> Sequence[Bucket]:
    """The buckets of plans that differ at powers of four: few placings, and near enough where two plans cost about the same. `placed`: the
    model at one token."""
    points = [4**i for i in range(16) if 4**i <= largest]
    at = _placing(placed.typed, placed.options, progress)
    return _buckets(_changes(placed.typed, lambda tokens: placed if tokens == placed.options.tokens else at(tokens), points), largest)


def _placing(typed: TypedModel, options: Options, progress: Progress) -> Callable[[int], PlacedModel]:
    def at(tokens: int) -> PlacedModel:
        progress(tokens)
        return place(typed, replace(options, tokens=tokens))

    return at


def _changes(typed: TypedModel, at: Callable[[int], PlacedModel], points: Sequence[int]) -> list[tuple[int, PlacedModel]]:
    """The points at which the plan is another than at the point before, the first among them. On one rank there is one plan."""
    starts = [(points[0], at(points[0]))]
    for point in points[1:] if typed.mesh.active else ():
        placed = at(point)
        if not _same(placed, starts[-1][1]):
            starts.append((point, placed))
    return starts


def _buckets(starts: Sequence[tuple[int, PlacedModel]], largest: int) -> Sequence[Bucket]:
    ends = [first - 1 for first, _ in starts[1:]] + [largest]
    return tuple(Bucket(first, last, placed) for (first, placed), last in zip(starts, ends, strict=True))


def _same(a: PlacedModel, b: PlacedModel) -> bool:
    """Whether both have the same collectives at the same places: what a rank copies alone makes no other plan."""
    return all(_collectives(a.instances[name]) == _collectives(b.instances[name]) for name in a.instances)


def _collectives(placed: PlacedInstance) -> list[tuple[int, int, Move]]:
    return [(t.operation, t.value, m) for t in placed.transitions for m in t.moves if m.kind in COLLECTIVES]
