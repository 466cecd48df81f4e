"""The states of a rank's sequences: each of a page's size, whatever the sequence's length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tskernels.dtypes import size_bytes
from tsrun.memory import zeros
from tsrun.places import Place
from tsrun.program import State
from tsrun.step import Ints


class States:
    """Memory for `num_pages` pages of each state of a program."""

    def __init__(self, states: Sequence[State], num_pages: int) -> None:
        self.places: list[Place] = []
        self._bytes: list[NDArray[np.uint8]] = []
        for state in states:
            place = zeros((num_pages, *state.shape), state.dtype)
            self.places.append(place)
            self._bytes.append(np.frombuffer(place.buffer, dtype=np.uint8)[: num_pages * _page_bytes(state)].reshape(num_pages, -1))  # type: ignore[call-overload]

    def copy(self, copies_C3: Ints) -> None:
        """Copy pages, each (group, source, target), in order: a snapshot to start others from, or a start from one."""
        for _, source, target in copies_C3.tolist():
            for pages in self._bytes:
                pages[target] = pages[source]


def state_bytes(states: Sequence[State]) -> int:
    """That a sequence takes on one rank."""
    return sum(map(_page_bytes, states))


def _page_bytes(state: State) -> int:
    return size_bytes(state.dtype) * int(np.prod(state.shape, dtype=np.int64))
