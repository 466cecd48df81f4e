"""What a step brought its sequences: tokens, of which some may have been drafted, or why there is none.

Dimensions: S sequences and D drafts in the step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tsrun._core import StepPlan
from tsrun.branches import Grown
from tsrun.drafts import Drafts
from tsrun.generation import StepLogits, TokenLogprobs
from tsrun.output import Output
from tsrun.step import Ints, Step


class Outcome:
    """sampled: the places of sequences that get tokens, and whose requests are open. came: of these the tokens in order, each after the row
    of logits that it comes of; the last is negative where there is none. step: that ran, with the rows of branches, and sequences of these
    after the plan's."""

    def __init__(self, plan: StepPlan, step: Step, drafts: Drafts, result: Output, sampled: Iterable[int]) -> None:
        self._plan, self.step, self._drafts, self._result = plan, step, drafts, result
        tokens = result.tokens()
        if drafts.tokens.size:
            self.came = {s: drafts.came(tokens, s) for s in sampled}
        else:
            numbers = tokens.tolist()
            self.came = {s: [(s, numbers[s])] for s in sampled}

    def tokens(self, s: int) -> list[int]:
        """Those that there are."""
        return [token for _, token in self.came[s] if token >= 0]

    @property
    def has_failures(self) -> bool:
        return any(found[-1][1] < 0 for found in self.came.values())

    @property
    def branches(self) -> tuple[Grown, ...]:
        """Those that ran."""
        return self._drafts.branches

    def branch(self, s: int) -> Grown | None:
        """The one that came of a sequence, if any did."""
        last, _ = self.came[s][-1]
        return next((grown for grown in self.branches if grown.number == last), None)

    def failure(self, s: int) -> tuple[int, int] | None:
        """Why a sequence has no further token, and the position that it would have."""
        why = self.came[s][-1][1]
        if why >= 0:
            return None
        return why, int(self._plan.lengths[s] - self._plan.num_drafts[s]) + len(self.came[s]) - 1

    def num_drafted(self, s: int) -> int:
        return int(self._drafts.counts[s]) + sum(grown.sequence == s for grown in self.branches) if self._drafts.tokens.size else 0

    def logprobs(self, s: int) -> list[TokenLogprobs]:
        """Of its tokens, where its request asks for them."""
        found = {} if self._result.chosen is None else self._result.chosen.logprobs
        return [TokenLogprobs(token, found[row][0], tuple(found[row][1])) for row, token in self.came[s] if row in found]

    def last_tokens(self) -> Ints:
        """[S], 0 where a sequence gets none."""
        tokens = [0] * len(self._plan.requests)
        for s, found in self.came.items():
            tokens[s] = max(0, found[-1][1])
        return np.array(tokens, dtype=np.int32)

    def for_scheduler(self) -> tuple[Ints, Ints | None]:
        """Tokens and counts, as a commit takes them; of a request that has ended some token."""
        if not self._drafts.tokens.size:
            return self.last_tokens(), None
        nothing = [(0, 0)]
        brought = [self.came.get(s, nothing) if samples else [] for s, samples in enumerate(self._plan.samples)]
        tokens = np.array([max(0, token) for found in brought for _, token in found], dtype=np.int32)
        return tokens, np.array([len(found) for found in brought], dtype=np.int32)

    def logits(self) -> StepLogits:
        """Of the rows that tokens come of, and of sequences that get none the last."""
        plan = self._plan
        rows = [(s, row) for s in range(len(plan.requests)) for row, _ in self.came.get(s, [(s, 0)])]
        sequences, places = (np.array(each, dtype=np.int64) for each in zip(*rows, strict=True))
        positions = np.concatenate((self.step.positions[self.step.last], plan.positions[self._drafts.rows]))[places]
        return StepLogits(plan.requests[sequences], positions, plan.samples[sequences], self._result.numbers()[places])
