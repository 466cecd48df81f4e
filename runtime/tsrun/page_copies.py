"""Copies of pages on one rank, as a step asks for them before it runs: of states, and of the caches that a branch goes on from."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tskernels.dtypes import size_bytes
from tsrun.limits import Limits
from tsrun.places import Place
from tsrun.program import Program
from tsrun.states import page_bytes
from tsrun.step import Ints


class PageCopies:
    """Of caches and states, in the order of the program's. Caches that only drafts write are no sequence's, and stay as they are."""

    def __init__(self, program: Program, limits: Limits, caches: Sequence[Place], states: Sequence[Place]) -> None:
        self._groups: list[list[Any]] = [[] for _ in range(limits.num_groups)]
        groups = {window: group for group, window in enumerate(limits.pages)}
        for index in program.own_caches:
            cache = program.caches[index]
            size = limits.page_size * size_bytes(cache.dtype) * prod(cache.page)
            self._groups[groups[cache.window]].append(_by_pages(caches[index], limits.stored_pages[cache.window], size))
        for state, place in zip(program.states, states, strict=True):
            self._groups[-1].append(_by_pages(place, limits.num_states, page_bytes(state)))

    def copy(self, copies_C3: Ints) -> None:
        """Copy pages, each (group, source, target), in order."""
        for group, source, target in copies_C3.tolist():
            for pages in self._groups[group]:
                pages[target] = pages[source]


def _by_pages(place: Place, num_pages: int, size: int) -> Any:
    """[pages, bytes]: an array of NumPy's, or where memory is a tensor's, that."""
    whole: Any = np.frombuffer(place.buffer, dtype=np.uint8) if isinstance(place.buffer, mmap.mmap) else place.buffer
    return whole[: num_pages * size].reshape(num_pages, size)
