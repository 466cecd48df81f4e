"""Plans by the number of tokens in a step: which one is cheapest for few tokens, which for many, and where it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tsc.program import TypedModel
from tspasses.place import place
from tspasses.placed import Options, PlacedModel

LARGEST = 65536
"""Tokens of the largest step that is looked at."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Steps of `first` to `last` tokens have the collectives of `placed`, which was placed at `first`."""

    first: int
    last: int
    placed: PlacedModel


def plan_set(typed: TypedModel, options: Options, largest: int = LARGEST) -> Sequence[Bucket]:
    """The buckets from one token to `largest`, thresholds exact to the token between powers of two that differ. A plan that is
    cheapest only strictly between two powers of two is not found. Raises CompileError."""

    def at(tokens: int) -> PlacedModel:
        return place(typed, replace(options, tokens=tokens))

    points = [1 << i for i in range(largest.bit_length()) if 1 << i <= largest]
    starts = [(1, at(1))]
    for low, high in pairwise(points):
        placed = at(high)
        if _same(placed, starts[-1][1]):
            continue
        known = starts[-1][1]
        while high - low > 1:  # the first count that has the new plan
            middle = (low + high) // 2
            found = at(middle)
            if _same(found, known):
                low = middle
            else:
                high, placed = middle, found
        starts.append((high, placed))
    ends = [first - 1 for first, _ in starts[1:]] + [points[-1]]
    return tuple(Bucket(first, last, placed) for (first, placed), last in zip(starts, ends, strict=True))


def _same(a: PlacedModel, b: PlacedModel) -> bool:
    """Whether both have the same transitions at the same places."""
    return all(a.instances[name].transitions == b.instances[name].transitions for name in a.instances)
