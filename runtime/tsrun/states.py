"""The states of a rank's sequences: each of a page's size, whatever the sequence's length."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from tskernels.dtypes import size_bytes
from tsrun.memory import Zeros, zeros
from tsrun.places import Place
from tsrun.program import State
from tsrun.step import Ints


class States:
    """Memory for `num_pages` pages of each state of a program. memory: gives zeros of a shape and type."""

    def __init__(self, states: Sequence[State], num_pages: int, memory: Zeros = zeros) -> None:
        self.places = [memory((num_pages, *state.shape), state.dtype) for state in states]
        self._bytes = [
            _bytes(place)[: num_pages * _page_bytes(state)].reshape(num_pages, -1) for place, state in zip(self.places, states, strict=True)
        ]

    def copy(self, copies_C3: Ints) -> None:
        """Copy pages, each (group, source, target), in order: a snapshot to start others from, or a start from one."""
        for _, source, target in copies_C3.tolist():
            for pages in self._bytes:
                pages[target] = pages[source]


def _bytes(place: Place) -> Any:
    """An array of NumPy's, or where memory is a tensor's, that."""
    return np.frombuffer(place.buffer, dtype=np.uint8) if isinstance(place.buffer, mmap.mmap) else place.buffer


def state_bytes(states: Sequence[State]) -> int:
    """That a sequence takes on one rank."""
    return sum(map(_page_bytes, states))


def _page_bytes(state: State) -> int:
    return size_bytes(state.dtype) * int(np.prod(state.shape, dtype=np.int64))
