"""Where keys and values of tokens go that are only guessed: into the rest of a sequence's own pages, which the step that verifies them
writes anew, and past these into scratch pages, of which each row of the block tables has some.

Dimensions: G groups of caches, N rows, U changed entries of the block tables, E entries for one step.
"""

from __future__ import annotations

import numpy as np

from tskernels.cache_pages import table_columns
from tsrun.block_tables import BlockTables
from tsrun.limits import Limits
from tsrun.scratch_pages import ScratchPages, entries
from tsrun.step import Ints


class GuessPages:
    """Follows the block tables of the ranks."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._num_columns = table_columns(limits.pages_of(limits.max_context))
        self._tables = BlockTables(limits.num_groups, limits.max_sequences, self._num_columns)
        self._num_groups = len(limits.pages)
        self.scratch = ScratchPages(limits)

    def follow(self, updates_U4: Ints) -> None:
        """What a step changes."""
        self._tables.apply(updates_U4)

    def slots(self, rows_N: Ints, positions_N: Ints, own_N: Ints) -> Ints:
        """[G, N]: of positions of sequences in these rows of the tables, which have `own` pages."""
        size = self._limits.page_size
        indices = positions_N // size
        own = self._tables.pages(self._num_groups, rows_N, np.minimum(indices, own_N - 1))
        pages = np.where(indices < own_N, own, self.scratch.pages(rows_N, indices - own_N))
        slots: Ints = pages * size + positions_N % size
        return slots

    def entries(self, row: int, own: int) -> Ints:
        """[U, 4]: the entries of a sequence's own pages."""
        indices = np.arange(own, dtype=np.int32)
        return entries(row, indices, self._tables.pages(self._num_groups, np.full_like(indices, row), indices))

    def past(self, sequence: int, row: int, own: int) -> Ints:
        """[E, 4]: the entries that give a sequence of a step, of this row of the tables, its scratch pages after its own."""
        indices = np.arange(own, min(own + self._limits.scratch_pages, self._num_columns), dtype=np.int32)
        return entries(sequence, indices, self.scratch.pages(np.full_like(indices, row), indices - own))
