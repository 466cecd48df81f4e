"""The step sizes that programs of fixed shapes are compiled for: few, each padded to the next.

Assumes: plans as program.json lists them.
Guarantees: every step within `StepLimits` has a bucket that it fits in, and a bucket's tokens are a multiple of its plan's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tskernels.cache_pages import DRAFTED_ROWS, SCORED_ROWS

_GROWTH = 4
"""From a bucket to the next: half of a step is padding on average where steps are of any size, and few are."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Of a program of fixed shapes: tokens of a step, sequences that run at once, and pages of the caches without a window."""

    tokens: int = 256
    sequences: int = 16
    pages: int = 2048

    @classmethod
    def of(cls, given: Mapping[str, int]) -> StepLimits:
        """Raises ValueError, in words."""
        names = [f.name for f in fields(cls)]
        for name, size in given.items():
            if name not in names:
                raise ValueError(f"unknown size `{name}`; known: {', '.join(names)}")
            if size < 1:
                raise ValueError(f"{name} is {size}, and has to be positive")
        return cls(**given)


@dataclass(frozen=True, slots=True)
class StepBucket:
    """Steps of up to so many tokens, and rows of the result, that run by a plan; plan: its place among them."""

    plan: int
    tokens: int
    rows: int


def step_buckets(plans: Sequence[Mapping[str, Any]], limits: StepLimits) -> list[StepBucket]:
    """In rising order of tokens, then of rows. A step has as many rows of the result as tokens at most, but for what scores prompts."""
    largest = limits.sequences + DRAFTED_ROWS + SCORED_ROWS
    found: list[StepBucket] = []
    for tokens in _powers(limits.tokens):
        plan = max((i for i, p in enumerate(plans) if p["tokens"] <= tokens), key=lambda i: plans[i]["tokens"])
        multiple = plans[plan]["token_multiple"]
        padded = -(-tokens // multiple) * multiple
        last = tokens == _powers(limits.tokens)[-1]
        fitting = [n for n in _powers(limits.sequences) if n <= tokens]
        rows = [n for n in fitting if n >= _GROWTH or n == fitting[-1]]
        found.extend(StepBucket(plan, padded, n) for n in (*rows, *([largest] if last else [])))
    return list(dict.fromkeys(found))


def _powers(most: int) -> list[int]:
    """1 and its multiples by the growth, up to the first that reaches `most`."""
    found = [1]
    while found[-1] < most:
        found.append(min(found[-1] * _GROWTH, most))
    return found
