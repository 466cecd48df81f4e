"""What kernels took, for a person."""

from __future__ import annotations

from collections.abc import Mapping

from tsc.tables import print_table
from tsc.tune import Contest, Tuned
from tskernels.measure import Contender
from tskernels.registry import Call, in_common, nominal, rank
from tskernels.tuning import Measured, Tuning


def print_tuned(tuned: Tuned, tuning: Tuning) -> None:
    """On the standard output: microseconds of each kernel in steps of T tokens; then how many times as long as the first it takes, where
    all sizes that they have in common count alike. The first is what the compiler takes, unless another use of the weight is against it."""
    sizes = sorted({n for contest in tuned.contests for n in contest.tokens})
    measured = tuning.of(tuned.threads)
    rows = [row for contest in tuned.contests for row in _rows(contest, measured, sizes)]
    if rows:
        print_table(("call", "kernel", "bits", *(f"T = {n:,}" for n in sizes), "in all"), rows, left=3)


def _rows(contest: Contest, measured: Measured, sizes: list[int]) -> list[tuple[str, ...]]:
    def by_tokens(contender: Contender) -> Mapping[int, float]:
        return measured.seconds(contender.call, contender.kernel.name)

    common = in_common(map(by_tokens, contest.contenders))

    def seconds(contender: Contender) -> float:
        return nominal(by_tokens(contender), common)

    ordered = sorted(contest.contenders, key=lambda c: (*rank(c.kernel), seconds(c), c.kernel.name))
    rows = []
    for place, contender in enumerate(ordered):
        taken = by_tokens(contender)
        times = (_microseconds(taken[n]) if n in taken else "" for n in sizes)
        bits = "fixed" if contender.kernel.fixed_bits else "of the company"
        ratio = f"{seconds(contender) / seconds(ordered[0]):.2f}x"
        rows.append(("" if place else _short(contest.call), contender.kernel.name, bits, *times, ratio))
    return rows


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}" if seconds >= 1e-5 else f"{seconds * 1e6:.2f}"


def _short(call: Call) -> str:
    """Without attributes, which can be long."""
    return " ".join((call.op.removeprefix("ts::"), *map(str, call.operands)))
