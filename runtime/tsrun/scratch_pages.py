"""Pages past the scheduler's: one for the rows that pad a step, then some for each row of the block tables, for what is guessed.

Dimensions: G groups of caches, N rows.
"""

from __future__ import annotations

import numpy as np

from tsrun.limits import Limits
from tsrun.step import NO_ENTRIES, Ints


class ScratchPages:
    """Where they lie."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._num_pages = np.array(list(limits.pages.values()), dtype=np.int32)

    def pages(self, rows_N: Ints, numbers_N: Ints) -> Ints:
        """[G, N]: of rows of the block tables the pages of these numbers."""
        found: Ints = self._num_pages[:, None] + 1 + rows_N * self._limits.scratch_pages + numbers_N
        return found

    def nobodys(self, count: int) -> Ints:
        """[G, count]: slots of rows that pad a step."""
        return np.repeat(self._num_pages[:, None] * self._limits.page_size, count, axis=1)


def entries(row: int, indices_N: Ints, pages_GN: Ints) -> Ints:
    """[G * N, 4]: the entries of the block tables that give a row, or a sequence of a step, these pages."""
    rows = np.full_like(indices_N, row)
    groups = (np.stack((np.full_like(indices_N, group), rows, indices_N, pages), axis=1) for group, pages in enumerate(pages_GN))
    return np.concatenate([NO_ENTRIES, *groups])
