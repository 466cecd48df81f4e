"""The tensors that a step's kernels read their int32 inputs from: allocated once, refilled each step.

Dimensions: T tokens and S sequences in the step, P columns of the block tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tsrun.block_tables import BlockTables
from tsrun.limits import Limits
from tsrun.step import Ints, Step

_FEWEST_COLUMNS = 8

StepInput = tuple[str, int]
"""What it is called in a program, and the window of the caches that it is about: slots and tables are there once for each."""


def table_columns(P: int) -> int:
    """The width that tables of P pages are bound with: a power of two, so that a growing sequence rebinds seldom."""
    return max(_FEWEST_COLUMNS, 1 << (P - 1).bit_length())


class StepInputs:
    """One buffer an input, as large as the limits allow; `views` gives the part that a step shape uses."""

    def __init__(self, limits: Limits) -> None:
        T, S = limits.max_step_tokens, limits.max_sequences
        columns = table_columns(limits.pages_of(limits.max_context))
        self._windows = tuple(limits.pages)
        self._tables = BlockTables(len(self._windows), S, columns)
        sizes = {("ids", 0): T, ("positions", 0): T, ("spans", 0): 2 * S, ("lengths", 0): S, ("last", 0): S}
        for window in self._windows:
            sizes |= {("slots", window): T, ("tables", window): S * columns}
        self._tensors = {given: torch.zeros(size, dtype=torch.int32) for given, size in sizes.items()}
        self._arrays: dict[StepInput, Ints] = {given: tensor.numpy() for given, tensor in self._tensors.items()}

    def views(self, T: int, S: int, columns: int) -> Mapping[StepInput, Tensor]:
        shapes = {"ids": (T,), "positions": (T,), "slots": (T,), "spans": (S, 2), "lengths": (S,), "last": (S,), "tables": (S, columns)}
        return {(name, window): tensor[: int(np.prod(shapes[name]))].view(shapes[name]) for (name, window), tensor in self._tensors.items()}

    def fill(self, step: Step, columns: int) -> None:
        """Copy a step in, with the rows of the block tables as its updates leave them."""
        for name in ("ids", "positions", "spans", "lengths", "last"):
            self._put((name, 0), getattr(step, name))
        self._tables.apply(step.table_updates)
        S = len(step.table_rows)
        for group, window in enumerate(self._windows):
            self._put(("slots", window), step.slots[group])
            self._tables.copy_rows(group, step.table_rows, self._arrays["tables", window][: S * columns].reshape(S, columns))

    def _put(self, given: StepInput, source: Ints) -> None:
        np.copyto(self._arrays[given][: source.size], source.reshape(-1))
