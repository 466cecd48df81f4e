"""The drafts of a step: tokens that may follow a sequence's last one, and are verified in the step that computes what follows that.

A sequence with k of them has 1 + k rows in the step, the first of its last token. The logits of a row say what follows it: as long as
that is the next draft, they go on. So what comes is what would have come without, token by token, however it is chosen. Dimensions: S
sequences in the step, D drafts in it. Of the rows of logits the first S are of the sequences' last rows, the D after them of the rows
before these. The last sequences may be branches (`branches.py`): what follows their token counts where that came and the draft did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from tsrun.step import Ints

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.branches import Grown

NOT_REACHED = -4
"""Instead of a token of a row: a draft before it did not come, or was not known to come when the row was to be looked at."""
_NONE = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Drafts:
    """counts [S]: of each sequence; tokens [D]: of one sequence after the other; rows [D]: of the step, whose logits say whether a draft
    comes; branches: of the sequences in order. All are empty where there are none."""

    counts: Ints = field(default_factory=_NONE.copy)
    tokens: Ints = field(default_factory=_NONE.copy)
    rows: Ints = field(default_factory=_NONE.copy)
    branches: tuple[Grown, ...] = ()

    @classmethod
    def of(cls, plan: StepPlan) -> Self:
        counts = plan.num_drafts.copy()
        if not counts.any():
            return cls()
        rows = np.concatenate([np.arange(end - count, end, dtype=np.int32) for end, count in zip(plan.last, counts, strict=True)])
        return cls(counts, plan.ids[rows + 1], rows)

    def beside(self, branches: tuple[Grown, ...]) -> Self:
        """With branches, which are sequences without drafts."""
        return replace(self, counts=np.pad(self.counts, (0, len(branches))), branches=branches) if branches else self

    @property
    def sequences(self) -> Ints:
        """[D]: whose they are."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)

    @property
    def before(self) -> Ints:
        """[D]: how many the same sequence has before."""
        return np.concatenate([_NONE, *(np.arange(count, dtype=np.int32) for count in self.counts if count)])

    def of_sequence(self, s: int) -> list[int]:
        if not self.tokens.size:
            return []
        first = int(self.counts[:s].sum())
        return [int(token) for token in self.tokens[first : first + self.counts[s]]]

    def rows_of(self, s: int) -> Iterator[tuple[int, int | None]]:
        """The rows of logits of a sequence in order, each with the draft that it is to confirm, the last with None."""
        if self.tokens.size and self.counts[s]:
            first = int(self.counts[:s].sum())
            for index in range(first, first + int(self.counts[s])):
                yield len(self.counts) + index, int(self.tokens[index])
        yield s, None

    def came(self, tokens: Ints, s: int) -> list[tuple[int, int]]:
        """The rows of logits of a sequence that count, with their tokens [S + D]: drafts that were right, and what follows them."""
        found = []
        for row, draft in self.rows_of(s):
            token = int(tokens[row])
            if token == NOT_REACHED:
                break
            found.append((row, token))
            if token != draft:
                branch = self._branch(s, len(found) - 1, token)
                if branch is not None and tokens[branch.number] != NOT_REACHED:
                    found.append((branch.number, int(tokens[branch.number])))
                break
        return found

    def turned(self, tokens: Ints) -> list[Grown]:
        """Of tokens of rows without those of branches: the branches whose tokens came. What follows these is left to be known."""
        for branch in self.branches:
            tokens[branch.number] = NOT_REACHED
        ends = {branch.sequence: self.came(tokens, branch.sequence) for branch in self.branches}
        found = {s: self._branch(s, len(came) - 1, came[-1][1]) for s, came in ends.items() if came}
        return [branch for branch in found.values() if branch is not None]

    def _branch(self, s: int, place: int, token: int) -> Grown | None:
        """The one of a sequence that has this token there."""
        return next((b for b in self.branches if b.sequence == s and b.branch.place == place and b.branch.token == token), None)
