"""Speculative decoding: which tokens are verified with a sequence's next step, and whether that pays.

Who drafts says how likely each draft comes; what a step costs by its rows is measured. So many drafts are verified that most tokens come in
a second: with few sequences many, with many sequences, or for text that nobody foresees, none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from tskernels.cache_pages import DRAFTED_ROWS
from tsrun.generation import Speculated
from tsrun.guesses import GuessDrafter, GuessDrafters
from tsrun.limits import MOST_DRAFTS
from tsrun.lookup import LookupDrafters
from tsrun.step_cost import StepCost

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.branches import Branch
    from tsrun.chains import Chain, Guesser
    from tsrun.drafts import Drafts
    from tsrun.generation import GenerationRequest
    from tsrun.limits import Speculate
    from tsrun.outcome import Outcome
    from tsrun.stream import Stream

_PLAIN_EACH = 64
"""Of the steps that are waited for one is not, so that what steps without drafts take is measured again."""
_PLAIN_TRIES = 2


class Drafter(Protocol):
    """What foresees the tokens of one request."""

    @property
    def has_begun(self) -> bool:
        """Whether it has taken a token."""

    def take(self, tokens: Sequence[int]) -> None:
        """The answer has these more."""

    def draft(self, most: int) -> tuple[list[int], list[float]]:
        """So many tokens at most that may follow, and how likely each comes with all before it."""

    def expected(self) -> list[float]:
        """How likely the drafts come that there will be when the step that runs has ended."""

    def close(self) -> None:
        """The answer has ended."""


class Speculation:
    """Of one engine. May be off, and then has no drafts."""

    def __init__(self, source: Speculate, guesser: Guesser | None = None) -> None:
        """guesser: what guesses tokens by running a model, if the source is one."""
        self._guesser = guesser
        lookup = LookupDrafters() if source == "lookup" else None
        self._drafters = lookup if guesser is None else GuessDrafters(guesser.most)
        self._cost = StepCost()
        self._guess_cost = StepCost()  # of a run of what guesses
        self._guess_seconds = 0.0  # since the last step ended
        self._ended_at: float | None = None
        self._waits = 0
        self._tried: Counter[int] = Counter()  # steps of so many sequences that were not waited for, to know what they take
        self.total = Speculated()

    @property
    def is_on(self) -> bool:
        return self._drafters is not None

    @property
    def runs_a_model(self) -> bool:
        """Whether guesses are made between steps."""
        return self._guesser is not None

    def drafter(self, request: GenerationRequest, ends: Collection[int]) -> Drafter | None:
        return None if self._drafters is None else self._drafters.drafter(request.prompt, request.cache_salt, ends)

    def propose(self, streams: Mapping[int, Stream]) -> tuple[dict[int, list[int]], dict[int, list[Branch]]]:
        """Drafts for the next step, which follows all tokens that the drafters have taken, of requests without any no tokens; branches of
        them. An answer that not all tokens are allowed in has none: what it allows after a draft is known of the drafts alone."""
        begun = {number: stream.drafter for number, stream in streams.items() if stream.drafter is not None and stream.drafter.has_begun}
        found = {number: drafter.draft(MOST_DRAFTS) for number, drafter in begun.items()}
        depths = self._cost.depths(len(found), [chances for _, chances in found.values()], DRAFTED_ROWS)
        proposed = {}
        for (number, (tokens, _)), depth in zip(found.items(), depths, strict=True):
            allowed = streams[number].allowed
            proposed[number] = tokens[:depth] if allowed is None or not depth else tokens[: allowed.accepts(tokens[:depth])]
        expected = len(found) + sum(sum(found[number][1][: len(tokens)]) for number, tokens in proposed.items())
        return proposed, self._branches(proposed, {n: begun[n] for n in proposed if streams[n].allowed is None}, expected)

    def _branches(self, drafts: Mapping[int, Sequence[int]], drafters: Mapping[int, Drafter], expected: float) -> dict[int, list[Branch]]:
        """Those that pay. expected: tokens of a step without."""
        guessing = {number: drafter for number, drafter in drafters.items() if isinstance(drafter, GuessDrafter)}
        possible = [(number, *one) for number, drafter in guessing.items() for one in drafter.branches(drafts[number])]
        if not possible:
            return {}
        num_drafts = sum(map(len, drafts.values()))
        worth = [(chance, branch.num_rows) for _, branch, chance in possible]
        found: dict[int, list[Branch]] = {}
        for index in self._cost.branches(len(drafts) + num_drafts, expected, worth, DRAFTED_ROWS - num_drafts):
            number, branch, _ = possible[index]
            found.setdefault(number, []).append(branch)
        return found

    def waits(self, plan: StepPlan, drafts: Drafts, streams: Sequence[Stream]) -> bool:
        """Whether the step after the one that runs is better planned when the tokens of that one are known: it is likely to have drafts, or
        what guesses must see the rows of prompts. streams: that get tokens."""
        if drafts.tokens.size or (self._guesser is not None and self._guesser.needs_every_row and not plan.samples.all()):
            return True
        foreseen = [_foreseen(stream.drafter) for stream in streams if stream.drafter is not None]
        chances, guessed = [one for one, _ in foreseen], [one for _, one in foreseen]
        if not any(chances) or not any(self._cost.depths(len(streams), chances, DRAFTED_ROWS, guessed, self._guess_cost)):
            return False
        self._waits += 1
        if not self._cost.knows(len(streams)) and self._tried[len(streams)] < _PLAIN_TRIES:  # prompts may keep it from being known
            self._tried[len(streams)] += 1
            return False
        return self._waits % _PLAIN_EACH != 0

    def follow(self, plan: StepPlan) -> None:
        """A step is about to run."""
        if self._guesser is not None:
            self._guesser.follow(plan)

    def chain(self, plan: StepPlan, outcome: Outcome, streams: Mapping[int, Stream]) -> Chain | None:
        """What is to guess the tokens after a step, whose own the drafters have taken, where that pays. streams: by their requests."""
        if self._guesser is None:
            return None
        found = {s: streams[int(request)].drafter for s, request in enumerate(plan.requests) if int(request) in streams}
        drafters = {s: drafter for s, drafter in found.items() if isinstance(drafter, GuessDrafter)}
        foreseen = {s: drafter.foreseen(after_next=False) for s, drafter in drafters.items() if s in outcome.came}
        chances, guessed = [one for one, _ in foreseen.values()], [one for _, one in foreseen.values()]
        depths = self._cost.depths(len(foreseen), chances, DRAFTED_ROWS, guessed, self._guess_cost)
        wanted = {s: depth if is_guessed else 0 for s, depth, is_guessed in zip(foreseen, depths, guessed, strict=True)}
        has_prompts = plan.spans.size > 0 and int((plan.spans[:, 1] - plan.spans[:, 0] - plan.num_drafts).max()) > 1
        if not drafters or not (any(wanted.values()) or (self._guesser.needs_every_row and has_prompts)):
            return None
        return self._guesser.chain(plan, outcome, drafters, wanted)

    def guessed(self, chain: Chain) -> None:
        """It has run."""
        chain.end()
        self._guess_seconds += chain.seconds
        for rows, seconds in reversed(chain.runs):  # of what is not known yet first the runs of few rows
            if rows <= DRAFTED_ROWS:
                self._guess_cost.learn(rows, seconds)

    def count(self, drafted: int, accepted: int) -> None:
        self.total.drafts += 1
        self.total.draft_tokens += drafted
        self.total.accepted_tokens += accepted

    def begin(self, now: float) -> None:
        """Something is to be done. What a step costs is all that passes from the end of the one before, where there was one."""
        if self._ended_at is None:
            self._ended_at = now

    def end(self, rows: int | None, now: float) -> None:
        """A step has ended; rows: of one of decodes alone, which had drafts or was not planned late for them: drafts are compared with what
        steps without take at their best."""
        if rows is not None and self._ended_at is not None:
            self._cost.learn(rows, max(now - self._ended_at - self._guess_seconds, 0.0))
        self._ended_at, self._guess_seconds = now, 0.0

    def rest(self) -> None:
        """Nothing is to be done."""
        self._ended_at = None


def _foreseen(drafter: Drafter) -> tuple[list[float], bool]:
    """The chances of its draft after the next token, and whether a model is to guess it."""
    return drafter.foreseen(after_next=True) if isinstance(drafter, GuessDrafter) else (drafter.expected(), False)
