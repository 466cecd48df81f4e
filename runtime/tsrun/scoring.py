"""The log probabilities of a prompt: which rows of a step are looked at for them, and how they get logits.

A step gives the logits of one row a sequence; with `with_rows` it gives those of rows of prompts, too, as its last ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsrun._core import score
from tsrun.output import Output

if TYPE_CHECKING:
    from tsrun._core import Logprobs, StepPlan


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of a request's prompt, at `position`. row: of the step, whose logits say how likely it was; count: of the likeliest."""

    request: int
    position: int
    token: int
    count: int
    row: int


class PromptScores:
    """What a request has of its prompt's so far."""

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        self._prompt, self._count = prompt, count
        self._found: dict[int, Logprobs] = {}

    def of_chunk(self, request: int, plan: StepPlan, s: int) -> list[Scored]:
        """The tokens that follow the rows of sequence s, but those that were scored before a preemption."""
        first, end = (int(row) for row in plan.spans[s])
        places = ((row, int(plan.positions[row]) + 1) for row in range(first, end))
        wanted = ((row, place) for row, place in places if place < len(self._prompt) and place not in self._found)
        return [Scored(request, place, self._prompt[place], self._count, row) for row, place in wanted]

    def take(self, position: int, found: Logprobs) -> None:
        self._found[position] = found

    def all(self) -> list[tuple[int, Logprobs]]:
        """Each token but the first, with what was found."""
        return [(self._prompt[position], self._found[position]) for position in range(1, len(self._prompt))]


def scores(logits: Output, scored: Sequence[Scored]) -> list[tuple[Scored, Logprobs]]:
    """By the last rows of what a step gave."""
    first = logits.shape[0] - len(scored)
    arrays = (range(first, logits.shape[0]), [each.token for each in scored], [each.count for each in scored])
    rows, tokens, counts = (np.array(array, dtype=np.int32) for array in arrays)
    return list(zip(scored, score(logits.address, logits.dtype, logits.shape[1], rows, tokens, counts), strict=True))
