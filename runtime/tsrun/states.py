"""The states of a rank's sequences: each of a page's size, whatever the sequence's length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tskernels.dtypes import size_bytes
from tsrun.program import State


def state_bytes(states: Sequence[State]) -> int:
    """That a sequence takes on one rank."""
    return sum(map(page_bytes, states))


def page_bytes(state: State) -> int:
    return size_bytes(state.dtype) * int(np.prod(state.shape, dtype=np.int64))
