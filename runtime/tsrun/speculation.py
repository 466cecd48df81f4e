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
    from tsrun.generation import GenerationRequest
    from tsrun.limits import Speculate
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

    def __init__(self, source: Speculate) -> None:
        self.guesses = source == "mtp"
        """Whether the model's entry for drafts is to run after steps."""
        self._drafters = GuessDrafters() if self.guesses else LookupDrafters() if source == "lookup" else None
        self._cost = StepCost()
        self._ended_at: float | None = None
        self._waits = 0
        self._tried: Counter[int] = Counter()  # steps of so many sequences that were not waited for, to know what they take
        self.total = Speculated()

    @property
    def is_on(self) -> bool:
        return self._drafters is not None

    def drafter(self, request: GenerationRequest, ends: Collection[int]) -> Drafter | None:
        return None if self._drafters is None else self._drafters.drafter(request.prompt, request.cache_salt, ends)

    def propose(self, streams: Mapping[int, Stream]) -> dict[int, list[int]]:
        """Drafts for the next step, which follows all tokens that the drafters have taken; of requests without any no tokens."""
        begun = {number: stream.drafter for number, stream in streams.items() if stream.drafter is not None and stream.drafter.has_begun}
        found = {number: drafter.draft(MOST_DRAFTS) for number, drafter in begun.items()}
        depths = self._cost.depths(len(found), [chances for _, chances in found.values()], DRAFTED_ROWS)
        proposed = {}
        for (number, (tokens, _)), depth in zip(found.items(), depths, strict=True):
            allowed = streams[number].allowed
            proposed[number] = tokens[:depth] if allowed is None or not depth else tokens[: allowed.accepts(tokens[:depth])]
        return proposed

    def waits(self, streams: Sequence[Stream]) -> bool:
        """Whether the step after the one that runs is likely to have drafts, which its tokens must be known for."""
        chances = [stream.drafter.expected() for stream in streams if stream.drafter is not None]
        if not any(chances) or not any(self._cost.depths(len(streams), chances, DRAFTED_ROWS)):
            return False
        self._waits += 1
        if not self._cost.knows(len(streams)) and self._tried[len(streams)] < _PLAIN_TRIES:  # prompts may keep it from being known
            self._tried[len(streams)] += 1
            return False
        return self._waits % _PLAIN_EACH != 0

    @staticmethod
    def guessing(streams: Mapping[int, Stream | None]) -> dict[int, GuessDrafter]:
        """The drafters among them that take guesses."""
        drafters = {s: None if stream is None else stream.drafter for s, stream in streams.items()}
        return {s: drafter for s, drafter in drafters.items() if isinstance(drafter, GuessDrafter)}

    def count(self, drafted: int, accepted: int) -> None:
        self.total.drafts += 1
        self.total.draft_tokens += drafted
        self.total.accepted_tokens += accepted

    def begin(self, now: float) -> None:
        """Something is to be done. What a step costs is all that passes from the end of the one before, where there was one."""
        if self._ended_at is None:
            self._ended_at = now

    def end(self, rows: int | None, now: float) -> None:
        """A step has ended; rows: of one of decodes alone."""
        if rows is not None and self._ended_at is not None:
            self._cost.learn(rows, now - self._ended_at)
        self._ended_at = now

    def rest(self) -> None:
        """Nothing is to be done."""
        self._ended_at = None
