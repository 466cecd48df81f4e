"""How long a step takes by its rows, as those that were took, and how many drafts are worth theirs."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

_EXACT = 16  # up to so many rows each number is measured by itself, then fours
_DOUBLES = 16  # rows that make a step as long again as one of none, where nothing is known
_NEW_SHARE = 0.2  # of a measurement in what is held of its number of rows
_OTHERS_SHARE = 0.05  # and of its change in all others: what slows one step slows all
_FORGET = 0.003  # of what was not measured, with each step, so that a depth that did not pay is tried again
_WORTH = 1.01  # so much faster at least


class StepCost:
    """Learns from steps of decodes alone, in seconds."""

    def __init__(self) -> None:
        self._rows: list[int] = []  # in order, of those measured
        self._seconds: list[float] = []

    def learn(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long, with all that was between it and the one before."""
        rows = _measured_as(rows)
        at = bisect_left(self._rows, rows)
        if at == len(self._rows) or self._rows[at] != rows:
            guess = self.seconds(rows) if self._rows else seconds
            self._rows.insert(at, rows)
            self._seconds.insert(at, (seconds * guess) ** 0.5)  # one alone says little
            return
        ratio = min(2.0, max(0.5, seconds / self._seconds[at]))
        now = self._seconds[at] * ratio**_NEW_SHARE
        for other, known in enumerate(self._rows):
            guess = now * _shape(known) / _shape(rows)
            self._seconds[other] *= ratio**_OTHERS_SHARE * (guess / self._seconds[other]) ** _FORGET
        self._seconds[at] = now

    @property
    def is_known(self) -> bool:
        """Whether any steps were measured."""
        return bool(self._rows)

    def knows(self, rows: int) -> bool:
        """Whether steps of so many were measured."""
        return _measured_as(rows) in self._rows

    def seconds(self, rows: int) -> float:
        """Between what was measured a line; beyond, as much longer as a guess says; without anything no time, but its ratios."""
        if not self._rows:
            return _shape(rows)
        at = bisect_left(self._rows, rows)
        if at < len(self._rows) and (self._rows[at] == rows or at == 0):
            return self._seconds[at] * _shape(rows) / _shape(self._rows[at])
        if at == len(self._rows):
            return self._seconds[-1] * _shape(rows) / _shape(self._rows[-1])
        share = (rows - self._rows[at - 1]) / (self._rows[at] - self._rows[at - 1])
        return self._seconds[at - 1] * (1 - share) + self._seconds[at] * share

    def depths(
        self,
        num_sequences: int,
        chances: Sequence[Sequence[float]],
        most: int,
        guessed: Sequence[bool] = (),
        guessing: StepCost | None = None,
    ) -> list[int]:
        """How many of each chain of drafts to verify, `most` in all, so that most tokens come in a second.

        chances: of each draft, that it comes with all before it; they fall along a chain, so that the best drafts of all chains
        are the beginnings of each. guessed: of each chain, whether a model is still to guess it; guessing: what a run of that takes, which
        gives a draft more to each chain that is still so long.
        """
        runs: list[int] = []  # chains in each run
        taken, spent = Counter[int](), 0.0
        best, best_rate, expected = 0, num_sequences / self.seconds(num_sequences) * _WORTH, float(num_sequences)
        least = [0.0] * len(chances)  # chance of what may be worth its part of a run
        if guessing is not None and guessing.is_known and any(guessed):
            least = [best_rate * guessing.seconds(1) / sum(guessed) if one else 0.0 for one in guessed]
        kept = ((chance, -index) for index, chain in enumerate(chances) for chance in chain if chance >= least[index])
        ranked = sorted(kept, reverse=True)[:most]
        for count, (chance, negative) in enumerate(ranked, 1):
            expected += chance
            if guessing is not None and guessing.is_known and guessed[-negative]:
                depth = taken[-negative]
                runs += [0] * (depth == len(runs))
                spent += guessing.seconds(runs[depth] + 1) - (guessing.seconds(runs[depth]) if runs[depth] else 0.0)
                runs[depth] += 1
            taken[-negative] += 1
            rate = expected / (self.seconds(num_sequences + count) + spent)
            if rate > best_rate:
                best, best_rate = count, rate
        taken = Counter(-negative for _, negative in ranked[:best])
        return [taken[index] for index in range(len(chances))]

    def branches(self, rows: int, expected: float, branches: Sequence[tuple[float, int]], most: int) -> list[int]:
        """Which branches to verify, `most` at most, beside so many rows that are expected to bring so many tokens; by their places.

        branches: of each the chance that it brings a token more, and its rows.
        """
        taken: list[int] = []
        for index in sorted(range(len(branches)), key=lambda at: branches[at][0] / branches[at][1], reverse=True)[: max(0, most)]:
            chance, more = branches[index]
            if (expected + chance) / self.seconds(rows + more) > expected / self.seconds(rows):
                taken.append(index)
                expected, rows = expected + chance, rows + more
        return taken


def _measured_as(rows: int) -> int:
    return rows if rows <= _EXACT else -(-rows // 4) * 4


def _shape(rows: int) -> float:
    return 1 + rows / _DOUBLES
