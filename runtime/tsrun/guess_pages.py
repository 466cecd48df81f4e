"""Where keys and values of tokens go that are only guessed: into the rest of a sequence's own pages, which the step that verifies them
writes anew, and past these into scratch pages, of which each row of the block tables has some.

Dimensions: G groups of caches, N rows, U changed entries of the block tables.
"""

from __future__ import annotations

import numpy as np

from tskernels.cache_pages import table_columns
from tsrun.block_tables import BlockTables
from tsrun.limits import Limits
from tsrun.step import NO_ENTRIES, Ints


class GuessPages:
    """Follows the block tables of the ranks."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._num_columns = table_columns(limits.pages_of(limits.max_context))
        self._tables = BlockTables(limits.num_groups, limits.max_sequences, self._num_columns)
        self._num_pages = np.array(list(limits.pages.values()), dtype=np.int32)

    def follow(self, updates_U4: Ints) -> None:
        """What a step changes."""
        self._tables.apply(updates_U4)

    def slots(self, rows_N: Ints, positions_N: Ints, own_N: Ints) -> Ints:
        """[G, N]: of positions of sequences in these rows of the tables, which have `own` pages."""
        size = self._limits.page_size
        indices = positions_N // size
        own = self._tables.pages(len(self._num_pages), rows_N, np.minimum(indices, own_N - 1))
        pages = np.where(indices < own_N, own, self._scratch_pages(rows_N, indices - own_N))
        slots: Ints = pages * size + positions_N % size
        return slots

    def nobodys(self, count: int) -> Ints:
        """[G, count]: slots of rows that pad a step."""
        return np.repeat(self._num_pages[:, None] * self._limits.page_size, count, axis=1)

    def entries(self, row: int, own: int) -> Ints:
        """[U, 4]: the entries of a sequence's own pages."""
        indices = np.arange(own, dtype=np.int32)
        rows = np.full_like(indices, row)
        return _entries(rows, indices, self._tables.pages(len(self._num_pages), rows, indices))

    def scratch(self, row: int, own: int) -> Ints:
        """[U, 4]: the entries that give a sequence its scratch pages after its own, for a step."""
        indices = np.arange(own, min(own + self._limits.scratch_pages, self._num_columns), dtype=np.int32)
        rows = np.full_like(indices, row)
        return _entries(rows, indices, self._scratch_pages(rows, indices - own))

    def _scratch_pages(self, rows_N: Ints, numbers_N: Ints) -> Ints:
        """[G, N]. They come after the page of the rows that pad a step."""
        found: Ints = self._num_pages[:, None] + 1 + rows_N * self._limits.scratch_pages + numbers_N
        return found


def _entries(rows_N: Ints, indices_N: Ints, pages_GN: Ints) -> Ints:
    groups = (np.stack((np.full_like(indices_N, group), rows_N, indices_N, pages), axis=1) for group, pages in enumerate(pages_GN))
    return np.concatenate([NO_ENTRIES, *groups])
