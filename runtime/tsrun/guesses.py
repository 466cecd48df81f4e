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

from tsrun.branches import Branch
from tsrun.chains import Chain, Link
from tsrun.guess_pages import GuessPages
from tsrun.limits import MOST_DRAFTS, MOST_GUESSES, Limits
from tsrun.lookup import LookupDrafter, LookupDrafters
from tsrun.output import Second
from tsrun.program import Program
from tsrun.scratch_pages import ScratchPages
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

    def learn(self, came: bool, share: float, of: float = 1.0) -> None:
        """of: what the value is to be multiplied by, where that is known of the single guess."""
        self.value = max(0.0, self.value + share * (came - of * self.value))

    def forget(self) -> None:
        self.value += _FORGET * max(0.0, _FIRST_CHANCE - self.value)


class GuessDrafter:
    """Of one request: the model's guesses, or what is looked up where that is the better draft. ends: tokens that are never drafted;
    of_all, seconds: of all requests, how likely guesses come, and second tokens as a multiple of what the model says."""

    def __init__(
        self, prompt: Sequence[int], lookup: LookupDrafter, ends: Collection[int], of_all: Sequence[Chance], seconds: Chance
    ) -> None:
        self.tokens = list(prompt)
        self.ends = ends
        self._lookup = lookup
        self._guesses: list[int] = []
        self._beside: list[Second | None] = []
        self._prefixes = array("q")
        self._of_all, self._own = of_all, [Chance(chance.value) for chance in of_all]
        self._seconds_of_all, self._seconds = seconds, Chance(seconds.value)

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

    def guess(self, tokens: list[int], beside: list[Second | None]) -> None:
        """What the model expects after all tokens that were taken, and the second likeliest beside the first of them."""
        self._guesses, self._beside = tokens, beside

    def branches(self, drafts: Sequence[int]) -> list[tuple[Branch, float]]:
        """What may be verified beside drafts, where they are guesses, and how likely each comes."""
        if [*drafts] != self._guesses[: len(drafts)]:
            return []
        before = [1.0, *self.hopes]
        found = zip(range(len(drafts)), self._beside, before, strict=False)
        seconds = ((place, *second, hope) for place, second, hope in found if second is not None and second[0] not in self.ends)
        return [(Branch(place, token), min(1.0, chance * self._seconds.value) * hope) for place, token, chance, hope in seconds]

    def take(self, tokens: Sequence[int]) -> None:
        if not self._guesses:
            for chance in self._own:
                chance.forget()
        for depth, (guess, token) in enumerate(zip(self._guesses, tokens, strict=False)):
            second = self._beside[depth] if depth < len(self._beside) else None
            if second is not None:
                self._seconds.learn(second[0] == token, _NEW_SHARE, second[1])
                self._seconds_of_all.learn(second[0] == token, _OF_ALL_SHARE, second[1])
            self._own[depth].learn(guess == token, _NEW_SHARE)
            self._of_all[depth].learn(guess == token, _OF_ALL_SHARE)
            if guess != token:
                break
        self._guesses, self._beside = [], []
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
        self._seconds = Chance()

    def drafter(self, prompt: Sequence[int], salt: str | None, ends: Collection[int]) -> GuessDrafter:
        return GuessDrafter(prompt, self._lookup.drafter(prompt, salt, ends), ends, self._chances, self._seconds)


class OwnEntry:
    """The entry for drafts of the artifact that runs. named: what each token that it guesses is to the target, None for itself; branches:
    of how many guesses the second likeliest is looked for, too."""

    needs_every_row = True

    def __init__(self, program: Program, limits: Limits, vocabulary: int, named: Ints | None = None, branches: int = 0) -> None:
        self.most = MOST_GUESSES if program.can_go_on else 1
        self._program = program
        self._limits = limits
        self._vocabulary = vocabulary
        self._named = named
        self._branches = branches
        self._pages = GuessPages(limits)

    def follow(self, plan: StepPlan) -> None:
        self._pages.follow(plan.table_updates)

    def chain(self, plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter], depths: Mapping[int, int]) -> Chain:
        first = guessing_step(plan, outcome, drafters, self._pages.scratch, 2 if self._branches else 1)
        links = []
        for s, depth in depths.items():
            if not depth:
                continue
            position = int(first.positions[first.last[s]])
            most = min(self.most, self._limits.max_context - position)
            own = self._limits.pages_of(int(plan.lengths[s]))
            links.append(Link(drafters[s], s, int(plan.table_rows[s]), position, own, min(depth, most)))
        padded = partial(self._program.padded, drafting=True)
        return Chain(first, links, self._pages, self._vocabulary, padded, named=self._named, branches=self._branches)


def guessing_step(plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter], scratch: ScratchPages, keep: int) -> Step:
    """What runs after a step: its rows with the tokens that follow them. Where a branch came, its rows are the sequence's, and lie where
    the request has its tokens; those of others are nobody's."""
    of_plan = Step.of(plan, np.full_like(plan.last, keep))
    ids, last, spans, lengths = np.zeros_like(outcome.step.ids), plan.last.copy(), plan.spans, plan.lengths
    ids[:-1] = outcome.step.ids[1:]
    slots = outcome.step.slots
    if outcome.branches:
        slots, spans, lengths = slots.copy(), spans.copy(), lengths.copy()
    for one in outcome.branches:
        slots[:, one.begin : one.end] = scratch.nobodys(one.branch.num_rows)
    for s, drafter in drafters.items():
        end = int(plan.last[s])
        came = outcome.tokens(s) if s in outcome.came else []
        if came:  # the first follows the row before all drafts
            begin = end - int(plan.num_drafts[s])
            branch = outcome.branch(s)
            if branch is not None:
                slots[:, begin : end + 1] = scratch.nobodys(end + 1 - begin)
                slots[:, branch.begin : branch.end] = branch.own_slots
                lengths[s] += branch.branch.num_rows - (end + 1 - begin)
                begin, spans[s] = branch.begin, (branch.begin, branch.end)
            ids[begin : begin + len(came)] = came
            last[s] = begin + len(came) - 1
        else:
            ids[end] = drafter.token(int(plan.positions[end]) + 1)
    return replace(
        of_plan,
        ids=ids,
        positions=outcome.step.positions,
        slots=slots,
        spans=spans,
        lengths=lengths,
        last=last,
        table_updates=of_plan.table_updates[:0],
        copies=of_plan.copies[:0],
        drafting=True,
    )
