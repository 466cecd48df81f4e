"""Guesses of a model: who drafts by them, and how the artifact's own entry for drafts makes them. That runs after a step on its rows, each
with the token that follows it, and so foresees one token further (multi-token prediction); then on what it kept itself.

Dimensions: T tokens and S sequences in the step.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice, takewhile
from operator import mul
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsrun.chains import Chain, Link
from tsrun.guess_pages import GuessPages
from tsrun.limits import MOST_DRAFTS, MOST_GUESSES, Limits
from tsrun.lookup import LookupDrafter, LookupDrafters
from tsrun.program import Program
from tsrun.step import Ints, Step

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.outcome import Outcome

_FIRST_CHANCE = 0.7  # that a guess comes after those before it, where none was looked at
_NEW_SHARE = 0.05  # of one guess in what is held of its request's
_OF_ALL_SHARE = 0.01  # and in what is held of all
_FORGET = 0.003  # of what was not tried, with each token, so that it is tried again


@dataclass(slots=True)
class Chance:
    """How likely a guess comes, where those before it in its chain do."""

    value: float = _FIRST_CHANCE

    def learn(self, came: bool, share: float) -> None:
        self.value += share * (came - self.value)

    def forget(self) -> None:
        self.value += _FORGET * max(0.0, _FIRST_CHANCE - self.value)


class GuessDrafter:
    """Of one request: the model's guesses, or what is looked up where that is the better draft. ends: tokens that are never drafted."""

    def __init__(self, prompt: Sequence[int], lookup: LookupDrafter, ends: Collection[int], of_all: Sequence[Chance]) -> None:
        self.tokens = list(prompt)
        self.ends = ends
        self._lookup = lookup
        self._guesses: list[int] = []
        self._prefixes = array("q")
        self._of_all, self._own = of_all, [Chance(chance.value) for chance in of_all]

    @property
    def has_begun(self) -> bool:
        return self._lookup.has_begun

    def prefixes(self, more: Sequence[int] = ()) -> NDArray[np.int64]:
        """Of each token, and of more that may follow, a number that says which tokens there are up to it."""
        for token in self.tokens[len(self._prefixes) :]:
            self._prefixes.append(hash((self._prefixes[-1] if self._prefixes else 0, token)))
        following = accumulate(more, lambda before, token: hash((before, token)), initial=self._prefixes[-1])
        return np.append(np.array(self._prefixes), np.array([*islice(following, 1, None)], dtype=np.int64))

    def token(self, position: int) -> int:
        """Of prompt or answer, as far as they are known."""
        return self.tokens[position] if position < len(self.tokens) else 0

    @property
    def hopes(self) -> list[float]:
        """How likely each guess of a chain comes with all before it."""
        return list(accumulate((chance.value for chance in self._own), mul))

    def foreseen(self, *, after_next: bool) -> tuple[list[float], bool]:
        """The chances of the better draft, and whether it is to be guessed and not looked up. after_next: when one more token has come."""
        chances = self._lookup.expected() if after_next else self._lookup.draft(MOST_DRAFTS)[1]
        hopes = self.hopes
        return (chances, False) if chances and sum(chances) >= sum(hopes) else (hopes, True)

    def guess(self, tokens: list[int]) -> None:
        """What the model expects after all tokens that were taken."""
        self._guesses = tokens

    def take(self, tokens: Sequence[int]) -> None:
        if not self._guesses:
            for chance in self._own:
                chance.forget()
        for depth, (guess, token) in enumerate(zip(self._guesses, tokens, strict=False)):
            self._own[depth].learn(guess == token, _NEW_SHARE)
            self._of_all[depth].learn(guess == token, _OF_ALL_SHARE)
            if guess != token:
                break
        self._guesses = []
        self.tokens += tokens
        self._lookup.take(tokens)

    def draft(self, most: int) -> tuple[list[int], list[float]]:
        tokens, chances = self._lookup.draft(most)
        guesses = list(takewhile(lambda token: token not in self.ends, self._guesses[:most]))
        hopes = self.hopes[: len(guesses)]
        return (tokens, chances) if sum(chances) >= sum(hopes) else (guesses, hopes)

    def expected(self) -> list[float]:
        return self.foreseen(after_next=True)[0]

    def close(self) -> None:
        self._lookup.close()


class GuessDrafters:
    """The drafters of an engine that guesses so many tokens of a sequence."""

    def __init__(self, most: int) -> None:
        self._lookup = LookupDrafters()
        self._chances = [Chance() for _ in range(most)]

    def drafter(self, prompt: Sequence[int], salt: str | None, ends: Collection[int]) -> GuessDrafter:
        return GuessDrafter(prompt, self._lookup.drafter(prompt, salt, ends), ends, self._chances)


class OwnEntry:
    """The entry for drafts of the artifact that runs. named: what each token that it guesses is to the target, None for itself."""

    needs_every_row = True

    def __init__(self, program: Program, limits: Limits, vocabulary: int, named: Ints | None = None) -> None:
        self.most = MOST_GUESSES if program.can_go_on else 1
        self._program = program
        self._limits = limits
        self._vocabulary = vocabulary
        self._named = named
        self._pages = GuessPages(limits)

    def follow(self, plan: StepPlan) -> None:
        self._pages.follow(plan.table_updates)

    def chain(self, plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter], depths: Mapping[int, int]) -> Chain:
        first = guessing_step(plan, outcome, drafters)
        links = []
        for s, depth in depths.items():
            if not depth:
                continue
            position = int(plan.positions[first.last[s]])
            most = min(self.most, self._limits.max_context - position)
            own = self._limits.pages_of(int(plan.lengths[s]))
            links.append(Link(drafters[s], s, int(plan.table_rows[s]), position, own, min(depth, most)))
        padded = partial(self._program.padded, drafting=True)
        return Chain(first, links, self._pages, self._vocabulary, padded, named=self._named)


def guessing_step(plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter]) -> Step:
    """What runs after a step: its rows with the tokens that follow them."""
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
