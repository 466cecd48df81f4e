"""Guesses of the model's own: its entry for drafts runs on a step's rows after the step, each with the token that follows it, and so
foresees one token further (multi-token prediction). Dimensions: T tokens and S sequences in the step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tsrun.lookup import LookupDrafter, LookupDrafters
from tsrun.step import Step

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.outcome import Outcome

_FIRST_CHANCE = 0.7  # that a guess comes, where none was looked at
_NEW_SHARE = 0.05  # of one guess in what is held of its request's
_OF_ALL_SHARE = 0.01  # and in what is held of all


@dataclass(slots=True)
class Chance:
    """How likely guesses come."""

    value: float = _FIRST_CHANCE

    def learn(self, came: bool, share: float) -> None:
        self.value += share * (came - self.value)


class GuessDrafter:
    """Of one request: the model's guess, or what is looked up where that is likelier. ends: tokens that are never drafted."""

    def __init__(self, prompt: Sequence[int], lookup: LookupDrafter, ends: Collection[int], of_all: Chance) -> None:
        self._tokens = list(prompt)
        self._lookup = lookup
        self._ends = ends
        self._guess: int | None = None
        self._of_all, self._own = of_all, Chance(of_all.value)

    @property
    def has_begun(self) -> bool:
        return self._lookup.has_begun

    def token(self, position: int) -> int:
        """Of prompt or answer, as far as they are known."""
        return self._tokens[position] if position < len(self._tokens) else 0

    def guess(self, token: int) -> None:
        """What the model expects after all tokens that were taken."""
        self._guess = token

    def take(self, tokens: Sequence[int]) -> None:
        if self._guess is not None and tokens:
            came = tokens[0] == self._guess
            self._own.learn(came, _NEW_SHARE)
            self._of_all.learn(came, _OF_ALL_SHARE)
        self._guess = None
        self._tokens += tokens
        self._lookup.take(tokens)

    def draft(self, most: int) -> tuple[list[int], list[float]]:
        tokens, chances = self._lookup.draft(most)
        if self._guess is None or self._guess in self._ends or not most or (chances and chances[0] >= self._own.value):
            return tokens, chances
        return [self._guess], [self._own.value]

    def expected(self) -> list[float]:
        looked_up = self._lookup.expected()
        return looked_up if looked_up and looked_up[0] >= self._own.value else [self._own.value]

    def close(self) -> None:
        self._lookup.close()


class GuessDrafters:
    """The drafters of an engine whose artifact has an entry for drafts."""

    def __init__(self) -> None:
        self._lookup = LookupDrafters()
        self._chance = Chance()

    def drafter(self, prompt: Sequence[int], salt: str | None, ends: Collection[int]) -> GuessDrafter:
        return GuessDrafter(prompt, self._lookup.drafter(prompt, salt, ends), ends, self._chance)


def guessing_step(plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter]) -> Step:
    """What runs after a step: its rows with the tokens that follow them. drafters: of its sequences that are open, by their places."""
    ids, last = np.zeros_like(plan.ids), plan.last.copy()
    ids[:-1] = plan.ids[1:]
    for s, drafter in drafters.items():
        end = int(plan.last[s])
        came = outcome.tokens(s) if s in outcome.came else []
        if came:  # the first follows the row before all drafts
            begin = end - int(plan.num_drafts[s])
            ids[begin : begin + len(came)] = came
            last[s] = begin + len(came) - 1
        else:
            ids[end] = drafter.token(int(plan.positions[end]) + 1)
    step = Step.of(plan, np.ones_like(last))  # the largest logit of each
    return replace(step, ids=ids, last=last, table_updates=step.table_updates[:0], copies=step.copies[:0], drafting=True)
