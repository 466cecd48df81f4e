"""Chains of guesses: what drafts runs once after a step, on the step's rows, and then again and again on what it guessed itself, one row
for each sequence that is to be guessed further.

Dimensions: S sequences in a run, N sequences that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tsrun.guess_pages import GuessPages
from tsrun.output import Output, Second, second_tokens
from tsrun.step import NO_COPIES, NO_ENTRIES, Ints, Step

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.guesses import GuessDrafter
    from tsrun.outcome import Outcome


@dataclass(slots=True)
class Link:
    """One sequence of a chain. sequence: in the run before; row: of the block tables; position: of its last row in that run; own_pages:
    that the scheduler has given it; depth: how many guesses are wanted; beside: of the first guesses the second likeliest, where there is
    one, with how likely the model holds it."""

    drafter: GuessDrafter
    sequence: int
    row: int
    position: int
    own_pages: int
    depth: int
    guesses: list[int] = field(default_factory=list)
    beside: list[Second | None] = field(default_factory=list)

    def take(self, token: int, second: Second | None, vocabulary: int) -> bool:
        """A guess, negative where there is none, and the second likeliest. Whether another is wanted."""
        if not 0 <= token < vocabulary:
            return False
        self.beside.append(second if second is not None and second[0] < vocabulary else None)
        self.guesses.append(token)
        return len(self.guesses) < self.depth and token not in self.drafter.ends


class Chain:
    """first: the run that it begins with, of which the links are some of the sequences. vocabulary: of whose tokens are guessed; padded:
    the rows of a run of so many; ended: is told of each link at the end, before its sequence has further tokens; named: what each token
    that is guessed is to the target, None where they are the same; branches: of how many guesses the second likeliest is looked for."""

    def __init__(
        self,
        first: Step,
        links: Sequence[Link],
        pages: GuessPages,
        vocabulary: int,
        padded: Callable[[int], int],
        ended: Callable[[Link], None] = lambda _: None,
        named: Ints | None = None,
        branches: int = 0,
    ) -> None:
        self.first = first
        self.links = links
        self.runs: list[tuple[int, float]] = []  # rows and seconds of each
        self._run = first
        self._going = list(links)
        self._pages = pages
        self._vocabulary = vocabulary
        self._padded = padded
        self._ended = ended
        self._named = named
        self._branches = branches

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.runs)

    def take(self, output: Output, seconds: float) -> Step | None:
        """What a run guessed, by its sequences, and how long it took; the run after it, where there is one."""
        seconds_S = {} if len(self.runs) >= self._branches else second_tokens(output, [link.sequence for link in self._going])
        tokens_S = output.largest_tokens()
        self.runs.append((len(self._run.ids), seconds))
        if self._named is not None:
            tokens_S = np.where(tokens_S < 0, tokens_S, self._named[tokens_S])
            seconds_S = {s: (int(self._named[token]), chance) for s, (token, chance) in seconds_S.items()}
        going = self._going
        self._going = [link for link in going if link.take(int(tokens_S[link.sequence]), seconds_S.get(link.sequence), self._vocabulary)]
        if not self._going:
            return None
        self._run = self._next(self._going)
        return self._run

    def end(self) -> None:
        """All is guessed: tell the drafters."""
        for link in self.links:
            self._ended(link)
            link.drafter.guess(link.guesses, link.beside)

    def _next(self, going: Sequence[Link]) -> Step:
        count = len(going)
        rows = np.arange(count, dtype=np.int32)
        before = self._run.last[[link.sequence for link in going]]
        for row, link in enumerate(going):
            link.sequence, link.position = row, link.position + 1
        table_rows, positions, own, ids = (
            np.array(each, dtype=np.int32)
            for each in zip(*((link.row, link.position, link.own_pages, link.guesses[-1]) for link in going), strict=True)
        )
        padding = self._padded(count) - count
        return Step(
            ids=np.pad(ids, (0, padding)),
            positions=np.pad(positions, (0, padding)),
            slots=np.concatenate((self._pages.slots(table_rows, positions, own), self._pages.scratch.nobodys(padding)), axis=1),
            spans=np.stack((rows, rows + 1), axis=1),
            lengths=positions + 1,
            last=rows,
            keep=np.full_like(rows, 2 if len(self.runs) < self._branches else 1),
            table_rows=table_rows,
            table_updates=NO_ENTRIES,
            copies=NO_COPIES,
            carried=np.pad(before, (0, padding)),
            scratch=np.concatenate([self._pages.past(link.sequence, link.row, link.own_pages) for link in going]),
            drafting=self.first.drafting,
        )


class Guesser(Protocol):
    """What guesses tokens by a program that runs after steps. most: of a sequence; needs_every_row: a step whose rows it does not see is
    lost to it."""

    most: int
    needs_every_row: bool

    def follow(self, plan: StepPlan) -> None:
        """A step is about to run."""

    def chain(self, plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter], depths: Mapping[int, int]) -> Chain | None:
        """What is to run after a step, whose tokens the drafters have taken. They are of open requests, by the places of their sequences;
        depths: how many guesses of each are worth it."""
