"""The block tables of one rank: which pages the running sequences have, kept from step to step.

Dimensions: S sequences in the step, P columns that it needs, U changed entries, N entries that are asked for.
"""

from __future__ import annotations

import numpy as np

from tsrun.step import Ints


class BlockTables:
    """A table for each group of caches, a row for each sequence that may run.

    An entry that no update has reached, or whose page was given away since, has a page that no kernel uses; it is one of the group's all
    the same, since a kernel may look it up.
    """

    def __init__(self, num_groups: int, num_rows: int, num_columns: int) -> None:
        self._pages = np.zeros((num_groups, num_rows, num_columns), dtype=np.int32)

    def apply(self, updates_U4: Ints) -> None:
        """Change entries, each (group, row, index, page). Of several changes of one entry the last stays."""
        group, row, index, page = updates_U4.T
        self._pages[group, row, index] = page

    def copy_rows(self, group: int, rows_S: Ints, out_SP: Ints) -> None:
        """The first columns of a group's rows, one a sequence of the step."""
        out_SP[:] = self._pages[group, rows_S, : out_SP.shape[1]]

    def pages(self, num_groups: int, rows_N: Ints, indices_N: Ints) -> Ints:
        """[G, N]: entries of the first groups."""
        found: Ints = self._pages[:num_groups, rows_N, indices_N]
        return found
