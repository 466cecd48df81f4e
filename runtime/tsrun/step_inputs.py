"""The arrays that a step's kernels read their int32 inputs from: allocated once, refilled each step.

Dimensions: T tokens and S sequences in the step, P columns of the block tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tskernels.cache_pages import table_columns
from tsrun.block_tables import BlockTables
from tsrun.limits import Limits
from tsrun.places import Extent, Place, fixed
from tsrun.step import Ints, Step

_TOKENS: tuple[Extent, ...] = (("T", 1),)
_SEQUENCES: tuple[Extent, ...] = (("S", 1),)
_SHAPES: Mapping[str, tuple[Extent, ...]] = {
    **dict.fromkeys(("ids", "positions", "slots"), _TOKENS),
    **dict.fromkeys(("lengths", "last", "keep", "states"), _SEQUENCES),
    "spans": (*_SEQUENCES, 2),
    "tables": (*_SEQUENCES, ("P", 1)),
}

StepInput = tuple[str, int]
"""What it is called in a program, and the window of the caches that it is about: slots and tables are there once for each."""


class StepInputs:
    """One array an input, as large as the limits allow: a step uses the beginning."""

    def __init__(self, limits: Limits) -> None:
        T, S = limits.max_step_tokens, limits.max_output_rows
        columns = table_columns(limits.pages_of(limits.max_context))
        self._windows = tuple(limits.pages)
        self._past = {window: pages * limits.page_size for window, pages in limits.pages.items()}
        self._has_states = limits.num_states > 0
        self._tables = BlockTables(limits.num_groups, limits.max_sequences, columns)
        sizes = {("ids", 0): T, ("positions", 0): T, ("spans", 0): 2 * S}
        sizes |= dict.fromkeys((("lengths", 0), ("last", 0), ("keep", 0), ("states", 0)), S)
        for window in self._windows:
            sizes |= {("slots", window): T, ("tables", window): S * columns}
        self._arrays: dict[StepInput, Ints] = {given: np.zeros(size, dtype=np.int32) for given, size in sizes.items()}

    def places(self) -> Mapping[StepInput, Place]:
        return {(name, window): fixed(array.ctypes.data, "i32", _SHAPES[name], array) for (name, window), array in self._arrays.items()}

    def array(self, name: str, window: int) -> Ints:
        """Of an input, as long as the limits allow; a step's begin it."""
        return self._arrays[name, window]

    def fill(self, step: Step, columns: int) -> None:
        """Copy a step in, with the rows of the block tables as its updates leave them."""
        for name in ("ids", "positions", "spans", "lengths", "last", "keep"):
            self._put((name, 0), getattr(step, name))
        self._tables.apply(step.table_updates)
        S = len(step.table_rows)
        for group, window in enumerate(self._windows):
            self._put(("slots", window), step.slots[group])
            tables = self._arrays["tables", window][: S * columns].reshape(S, columns)
            self._tables.copy_rows(group, step.table_rows, tables)
            if step.scratch.size:
                _, sequences, indices, pages = step.scratch[(step.scratch[:, 0] == group) & (step.scratch[:, 2] < columns)].T
                tables[sequences, indices] = pages
        if self._has_states:
            pages = self._arrays["states", 0][:S]
            self._tables.copy_rows(len(self._windows), step.table_rows, pages.reshape(S, 1))
            begins = step.lengths == step.spans[:, 1] - step.spans[:, 0]
            pages[begins] = ~pages[begins]

    def pad(self, T: int, S: int, padded_T: int, padded_S: int, columns: int) -> None:
        """Add rows that belong to no sequence, and write to the page past the last, and sequences that have no rows."""
        if (padded_T, padded_S) == (T, S):
            return
        for name in ("ids", "positions"):
            self._arrays[name, 0][T:padded_T] = 0
        for window, past in self._past.items():
            self._arrays["slots", window][T:padded_T] = past
            self._arrays["tables", window][S * columns : padded_S * columns] = 0
        self._arrays["spans", 0][2 * S : 2 * padded_S] = padded_T
        for name in ("lengths", "last", "states"):
            self._arrays[name, 0][S:padded_S] = 0
        self._arrays["keep", 0][S:padded_S] = 1

    def keeps_one(self, S: int) -> bool:
        """Whether of each sequence's logits the largest is all that will be looked at."""
        return bool((self._arrays["keep", 0][:S] == 1).all())

    def shape_of(self, S: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Spans and lengths."""
        spans = self._arrays["spans", 0][: 2 * S].reshape(S, 2).tolist()
        return [(first, last) for first, last in spans], self._arrays["lengths", 0][:S].tolist()

    def keep_all(self, is_wanted_S: NDArray[np.bool_]) -> None:
        """Of these sequences all logits are wanted, and of the others the fewest."""
        self._put(("keep", 0), np.where(is_wanted_S, 0, 1).astype(np.int32))

    def _put(self, given: StepInput, source: Ints) -> None:
        np.copyto(self._arrays[given][: source.size], source.reshape(-1))
