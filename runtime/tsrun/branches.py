"""Branches of a step's drafts: beside a draft a second token that may come in its place, verified with what follows it.

A branch runs as a sequence of its own in the step: the last token again, the drafts before its own token, and that. It reads its request's
full pages and has scratch pages for the rest, into which the beginning of the last page is copied before the step; so no kernel knows of
it, and no page is taken from anybody. Where its token comes, what it computed is copied into the request's pages before the next step.

Dimensions: S sequences of requests and B branches in the step, N rows of a branch, P pages that these are in, G groups of caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tsrun.limits import Limits, branch_pages
from tsrun.scratch_pages import ScratchPages, entries
from tsrun.step import NO_COPIES, Ints, Step

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.program import Program


@dataclass(frozen=True, slots=True)
class Branch:
    """place: of the draft that its token stands beside, among its sequence's."""

    place: int
    token: int

    @property
    def num_rows(self) -> int:
        """The last token's, those of the drafts before, and its own."""
        return self.place + 2


@dataclass(frozen=True, slots=True)
class Grown:
    """A branch in a step. sequence: whose it is; number: which sequence of the step it is itself, and its row of logits; begin: its first
    row; own_slots [G, N]: where its request has its tokens, if they come; pages [G * P, 3]: group, scratch page, the request's page."""

    branch: Branch
    sequence: int
    number: int
    begin: int
    own_slots: Ints
    pages: Ints

    @property
    def end(self) -> int:
        return self.begin + self.branch.num_rows


class Branches:
    """Of one engine: gives a step's branches their rows and pages."""

    def __init__(self, limits: Limits, program: Program) -> None:
        self._limits = limits
        self._program = program
        self._scratch = ScratchPages(limits)
        self._to_copy: list[Ints] = []

    def keep(self, came: Iterable[Grown]) -> None:
        """What these have computed is their requests' with the next step."""
        self._to_copy += [grown.pages for grown in came]

    def grow(self, plan: StepPlan, step: Step, wanted: Mapping[int, Sequence[Branch]]) -> tuple[Step, tuple[Grown, ...]]:
        """The step with the branches of its requests that it has room for, and with what was to be kept. wanted: by request."""
        copies = [*self._to_copy, step.copies]
        self._to_copy = []
        grown = list(self._placed(plan, wanted)) if wanted else []
        if not grown:
            return (step if len(copies) == 1 else replace(step, copies=np.concatenate(copies))), ()
        size, used = self._limits.page_size, grown[0].begin
        padding = self._program.padded(grown[-1].end, drafting=False) - grown[-1].end
        ids, positions, slots, tables = [step.ids[:used]], [step.positions[:used]], [step.slots[:, :used]], [step.scratch]
        for one in grown:
            first = int(plan.last[one.sequence] - plan.num_drafts[one.sequence])
            ids += [step.ids[first : first + one.branch.place + 1], np.array([one.branch.token], dtype=np.int32)]
            own = step.positions[first : first + one.branch.num_rows]
            positions.append(own)
            places = own // size - own[0] // size
            scratch = one.pages[:, 1].reshape(len(one.own_slots), -1)
            slots.append(scratch[:, places] * size + own % size)
            tables.append(entries(one.number, np.unique(own // size), scratch))
            if own[0] % size:
                copies.append(one.pages[:: scratch.shape[1]][:, [0, 2, 1]])
        whose = [one.sequence for one in grown]
        ends = np.array([one.end for one in grown], dtype=np.int32)
        return replace(
            step,
            ids=np.pad(np.concatenate(ids), (0, padding)),
            positions=np.pad(np.concatenate(positions), (0, padding)),
            slots=np.concatenate((*slots, self._scratch.nobodys(padding)), axis=1),
            spans=np.concatenate((step.spans, [(one.begin, one.end) for one in grown]), dtype=np.int32),
            lengths=np.append(step.lengths, np.array([own[-1] + 1 for own in positions[1:]], dtype=np.int32)),
            last=np.append(step.last, ends - 1),
            keep=np.append(step.keep, step.keep[whose]),
            table_rows=np.append(step.table_rows, step.table_rows[whose]),
            copies=np.concatenate((NO_COPIES, *copies)),
            scratch=np.concatenate(tables),
        ), tuple(grown)

    def _placed(self, plan: StepPlan, wanted: Mapping[int, Sequence[Branch]]) -> Iterator[Grown]:
        """Those whose draft is in the plan, as long as there are rows."""
        row, number = int(plan.spans[:, 1].max()), len(plan.requests)
        for s, request in enumerate(plan.requests.tolist()):
            for branch in wanted.get(request, ()):
                fits = self._program.padded(row + branch.num_rows, drafting=False) <= self._limits.max_step_tokens
                if branch.place < plan.num_drafts[s] and fits:
                    yield self._placed_at(plan, s, branch, number, row)
                    row, number = row + branch.num_rows, number + 1

    def _placed_at(self, plan: StepPlan, s: int, branch: Branch, number: int, row: int) -> Grown:
        size, first = self._limits.page_size, int(plan.last[s] - plan.num_drafts[s])
        own_slots = plan.slots[:, first : first + branch.num_rows].copy()
        indices = plan.positions[first : first + branch.num_rows] // size
        _, places = np.unique(indices, return_index=True)
        own = own_slots[:, places] // size
        numbers = branch_pages(branch.place, size) + np.arange(len(places), dtype=np.int32)
        scratch = self._scratch.pages(np.full_like(numbers, plan.table_rows[s]), numbers)
        groups = np.repeat(np.arange(len(own), dtype=np.int32), len(places))
        return Grown(branch, s, number, row, own_slots, np.stack((groups, scratch.reshape(-1), own.reshape(-1)), axis=1))
