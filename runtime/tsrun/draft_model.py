"""A separate artifact that drafts: a smaller model of the same tokenizer, which goes on from what a step brought by itself.

It runs beside rank 0, on the target's pages: what it computes of a token lies in a cache of its own, at the slot that the token has in the
target's, so that sequences, prefixes that are found again and preemption are the scheduler's alone. What it has computed is known by slot:
a number for the tokens up to there. What it has not, since no drafts were wanted, it computes when it drafts, as many rows at once as a
step may have. Caches with a window share the pages of those without.

Dimensions: G groups of caches, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tskernels.dtypes import size_bytes
from tsrun.artifact import PROGRAM, Artifact, open_artifact
from tsrun.chains import Chain, Link
from tsrun.errors import RequestError
from tsrun.executor import Executor
from tsrun.guess_pages import GuessPages
from tsrun.limits import MOST_GUESSES, Limits
from tsrun.output import Output
from tsrun.program import read_program
from tsrun.step import NO_COPIES, Ints, Step
from tsrun.tokenizer import Tokenizer
from tsrun.verification import files_read_before

if TYPE_CHECKING:
    from tsrun._core import StepPlan
    from tsrun.guesses import GuessDrafter
    from tsrun.outcome import Outcome

_TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/vocabulary.safetensors")


class DraftModel:
    """Opens and verifies the artifact; `bind` makes it ready, `run` runs a step of a chain. ArtifactError, RequestError where it can not
    draft for the target."""

    most = MOST_GUESSES
    needs_every_row = False

    def __init__(self, path: Path, target: Artifact, branches: int) -> None:
        self._branches = branches
        self._artifact = artifact = open_artifact(path, rank=0, memory=files_read_before())
        artifact.require_weights()
        self._program = read_program(artifact.file(PROGRAM))
        self._vocabulary = target.manifest.vocabulary
        why = _refusal(artifact, target)
        if self._program.states:
            why = "has states, which can not be taken back to before a guess", "give a model without"
        if why is not None:
            raise RequestError("draft", f"{path} {why[0]}", why[1])

    @property
    def row_bytes(self) -> int:
        """That a token takes in its caches."""
        return sum(size_bytes(cache.dtype) * prod(cache.page) for cache in self._program.caches)

    def bind(self, limits: Limits, threads: int, beside: Executor) -> None:
        """limits: of the target, which `beside` runs."""
        longest = min(limits.max_context, self._artifact.manifest.context or limits.max_context)
        windows = tuple((window, limits.num_pages) for window in self._program.windows)
        self._limits = replace(limits, max_context=longest, windows=windows, num_states=0)
        self._executor = Executor(self._artifact, self._program, 0, self._limits, threads, beside=beside)
        self._pages = GuessPages(self._limits)
        self._held = np.zeros(limits.num_pages * limits.page_size, dtype=np.int64)  # of each slot which tokens there are up to it

    def run(self, step: Step) -> Output:
        return self._executor.run(step)

    def follow(self, plan: StepPlan) -> None:
        if plan.table_updates.size:
            self._pages.follow(self._of_all_groups(plan.table_updates[plan.table_updates[:, 0] == 0]))

    def chain(self, plan: StepPlan, outcome: Outcome, drafters: Mapping[int, GuessDrafter], depths: Mapping[int, int]) -> Chain | None:
        left = self._limits.max_step_tokens
        parts: list[tuple[Ints, Ints, Ints]] = []  # ids, positions and slots of each sequence
        links, going = list[Link](), list[Link]()
        for s, depth in depths.items():
            drafter, row, own = drafters[s], int(plan.table_rows[s]), self._limits.pages_of(int(plan.lengths[s]))
            length = len(drafter.tokens)
            if not depth or not left or length > self._limits.max_context:
                continue
            positions, slots = self._slots(row, own, 0, length)
            prefixes = drafter.prefixes()
            unlike = np.flatnonzero(self._held[slots[0, :-1]] != prefixes[:-1])
            begin = int(unlike[0]) if unlike.size else length - 1
            end = min(length, begin + left)
            left -= end - begin
            parts.append((np.array(drafter.tokens[begin:end], dtype=np.int32), positions[begin:end], slots[:, begin:end]))
            # A later sequence may count these as cached in the same step: kernels on a GPU read early what earlier steps cached, and
            # have to be told before a model drafts there.
            self._hold(slots[0, begin:end], positions[begin:end], own, prefixes[begin:end])
            link = Link(drafter, len(links), row, end - 1, own, min(depth, self._limits.max_context - length + 1))
            links.append(link)
            going += [link] * (end == length)
        if not links:
            return None
        first = self._first(parts, links)
        return Chain(first, going, self._pages, self._vocabulary, lambda rows: rows, self._chained, branches=self._branches)

    def _first(self, parts: Sequence[tuple[Ints, Ints, Ints]], links: Sequence[Link]) -> Step:
        ids, positions, slots = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        ends = np.cumsum([len(part[0]) for part in parts], dtype=np.int32)
        return Step(
            ids=ids,
            positions=positions,
            slots=slots,
            spans=np.stack((np.append(np.int32(0), ends[:-1]), ends), axis=1),
            lengths=positions[ends - 1] + 1,
            last=ends - 1,
            keep=np.full_like(ends, 2 if self._branches else 1),
            table_rows=np.array([link.row for link in links], dtype=np.int32),
            table_updates=np.concatenate([self._pages.entries(link.row, link.own_pages) for link in links]),
            copies=NO_COPIES,
            scratch=np.concatenate([self._pages.past(link.sequence, link.row, link.own_pages) for link in links]),
        )

    def _chained(self, link: Link) -> None:
        """What it was run on of a sequence's guesses is computed, too."""
        length, prefixes = len(link.drafter.tokens), link.drafter.prefixes(link.guesses[:-1])
        if len(prefixes) > length:
            positions, slots = self._slots(link.row, link.own_pages, length, len(prefixes))
            self._hold(slots[0], positions, link.own_pages, prefixes[length:])

    def _slots(self, row: int, own: int, begin: int, end: int) -> tuple[Ints, Ints]:
        positions = np.arange(begin, end, dtype=np.int32)
        return positions, self._pages.slots(np.full_like(positions, row), positions, np.full_like(positions, own))

    def _hold(self, slots_N: Ints, positions_N: Ints, own: int, prefixes_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        stays = positions_N < own * self._limits.page_size  # and is not on a scratch page
        self._held[slots_N[stays]] = prefixes_N[stays]

    def _of_all_groups(self, updates_U4: Ints) -> Ints:
        """Group 0's for every group."""
        groups = range(self._limits.num_groups)
        return np.concatenate([np.concatenate((np.full_like(updates_U4[:, :1], g), updates_U4[:, 1:]), axis=1) for g in groups])


def _refusal(artifact: Artifact, target: Artifact) -> tuple[str, str] | None:
    """Why an artifact can not draft for another, and what to do."""
    manifest = artifact.manifest
    if manifest.gives != "logits":
        return f"gives {manifest.gives}, and no logits to guess by", "give a model that gives logits"
    if manifest.target.partition("+")[0] != "cpu":
        return f"is for {manifest.target}, and drafts of another artifact are computed on the CPU", "compile it for --target cpu"
    if manifest.ranks > 1:
        return f"is of {manifest.ranks} ranks, and the first rank alone drafts", "compile it for one, without --mesh"
    if not _same_tokens(artifact, target):
        return f"has another tokenizer than {target.path.name}", "give a model of the same family"
    return None


def _same_tokens(artifact: Artifact, target: Artifact) -> bool:
    """Whether each token means the same to both, however their files say it."""
    digests = [[one.manifest.files.get(name) for name in _TOKENIZER] for one in (artifact, target)]
    if digests[0] == digests[1]:
        return artifact.has_tokenizer or artifact.manifest.vocabulary == target.manifest.vocabulary
    if not artifact.has_tokenizer or not target.has_tokenizer:
        return False
    found = [Tokenizer.of(one).token_bytes() for one in (artifact, target)]
    return [*found[0].of] == [*found[1].of] and {*found[0].special} == {*found[1].special}
