"""The figures of runs: what each user gets, what the device does, what was computed and what was found in a cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from tsrun.bench.records import Result, Run, TurnRecord

MINUTE = 60.0


class Figures(msgspec.Struct, frozen=True):
    """Of one run. user_tps: tokens a second of a user, after each answer's first, the median user's; slow_tps: of the slowest tenth of the
    answers the fastest; *_per_minute: of one device; cached_share: of all prompt tokens; hit_share: of those that could be found; goodput:
    answers' tokens a minute of a device, of answers at the floor or faster. None where nothing says it."""

    user_tps: float | None
    slow_tps: float | None
    output_per_minute: float
    computed_per_minute: float | None
    cached_per_minute: float | None
    cached_share: float | None
    hit_share: float | None
    goodput: float
    first_p50: float | None
    first_p90: float | None
    first_p99: float | None
    gap_p50: float | None
    gap_p99: float | None
    turn_p50: float | None
    turn_p90: float | None
    joules_per_token: float | None
    turns: int
    cancelled: int
    refused: int
    failed: int


def figures(run: Run, devices: int, floor: float) -> Figures:
    """floor: tokens a second. Hostile requests that were refused are counted apart, and are no failures."""
    good = [turn for turn in run.turns if not turn.failed]
    minutes = run.seconds / MINUTE * devices
    output = sum(turn.completion_tokens for turn in good)
    told = [turn for turn in good if turn.cached_tokens is not None]
    cached = sum(turn.cached_tokens or 0 for turn in told)
    prompts = sum(turn.prompt_tokens for turn in told)
    eligible = sum(turn.eligible for turn in told)
    found = sum(min(turn.cached_tokens or 0, turn.eligible) for turn in told)
    speeds = [speed for turn in good if (speed := turn.tokens_per_second) is not None]
    firsts = [turn.first for turn in good if turn.first is not None]
    gaps = [gap for turn in good for gap in turn.gaps]
    whole = [turn.ended - turn.sent for turn in good if not turn.cancelled]
    return Figures(
        user_tps=median(users) if (users := _users(good)) else None,
        slow_tps=quantile(speeds, 0.1),
        output_per_minute=output / minutes,
        computed_per_minute=(prompts - cached) / minutes if told else None,
        cached_per_minute=cached / minutes if told else None,
        cached_share=cached / prompts if prompts else None,
        hit_share=found / eligible if eligible else None,
        goodput=sum(turn.completion_tokens for turn in good if (turn.tokens_per_second or 0.0) >= floor) / minutes,
        first_p50=quantile(firsts, 0.5),
        first_p90=quantile(firsts, 0.9),
        first_p99=quantile(firsts, 0.99),
        gap_p50=quantile(gaps, 0.5),
        gap_p99=quantile(gaps, 0.99),
        turn_p50=quantile(whole, 0.5),
        turn_p90=quantile(whole, 0.9),
        joules_per_token=None if run.joules is None or not output else run.joules / output,
        turns=len(good),
        cancelled=sum(turn.cancelled for turn in good),
        refused=sum(turn.failed and turn.hostile == "schema" for turn in run.turns),
        failed=sum(turn.failed and turn.hostile != "schema" for turn in run.turns),
    )


def _users(turns: Iterable[TurnRecord]) -> list[float]:
    """Of each user the tokens after first ones, over the seconds that they took."""
    tokens: defaultdict[int, int] = defaultdict(int)
    seconds: defaultdict[int, float] = defaultdict(float)
    for turn in turns:
        if turn.tokens_per_second is not None:
            tokens[turn.user] += turn.completion_tokens - 1
            seconds[turn.user] += turn.last
    return [tokens[user] / seconds[user] for user in tokens]


def quantile(values: Sequence[float], part: float) -> float | None:
    """The smallest value that so many of all are no larger than; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-part * len(ordered) // 1) - 1))]


class Spread(msgspec.Struct, frozen=True):
    """The median of repeats, and their range."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return cls(median(known), min(known), max(known)) if known else None

    def text(self, digits: int = 3) -> str:
        if self.least == self.most:
            return number(self.middle, digits)
        return f"{number(self.middle, digits)} ({number(self.least, digits)}-{number(self.most, digits)})"


def number(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


Load = tuple[int | None, float | None]
"""Users, or sessions a minute."""


def by_load(result: Result, floor: float) -> dict[Load, list[Figures]]:
    """The figures of the repeats at each load, from light to heavy."""
    found: dict[Load, list[Figures]] = {}
    for run in sorted(result.runs, key=lambda run: (run.concurrency or 0, run.rate or 0.0, run.repeat)):
        found.setdefault((run.concurrency, run.rate), []).append(figures(run, result.devices, floor))
    return found


def spread(repeats: Sequence[Figures], name: str) -> Spread | None:
    return Spread.of(getattr(one, name) for one in repeats)
