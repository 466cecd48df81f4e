"""The tensors that a step's kernels read their int32 inputs from: allocated once, refilled each step.

Dimensions: T tokens and S sequences in the step, P columns of the block tables.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tsrun.limits import Limits
from tsrun.step import Ints, Step, step_shape

_FEWEST_COLUMNS = 8


def table_columns(P: int) -> int:
    """The width that tables of P pages are bound with: a power of two, so that a growing sequence rebinds seldom."""
    return max(_FEWEST_COLUMNS, 1 << (P - 1).bit_length())


class StepInputs:
    """One buffer an input, as large as the limits allow; `views` gives the part that a step shape uses."""

    def __init__(self, limits: Limits) -> None:
        T, S = limits.max_step_tokens, limits.max_sequences
        columns = table_columns(limits.pages_of(limits.max_context))
        sizes = {"ids": T, "positions": T, "slots": T, "spans": 2 * S, "lengths": S, "last": S, "tables": S * columns}
        self._tensors = {name: torch.zeros(size, dtype=torch.int32) for name, size in sizes.items()}
        self._arrays: dict[str, Ints] = {name: tensor.numpy() for name, tensor in self._tensors.items()}

    def views(self, T: int, S: int, columns: int) -> dict[str, Tensor]:
        lengths = {"ids": T, "positions": T, "slots": T, "lengths": S, "last": S}
        views = {name: self._tensors[name][:length] for name, length in lengths.items()}
        views["spans"] = self._tensors["spans"][: 2 * S].view(S, 2)
        views["tables"] = self._tensors["tables"][: S * columns].view(S, columns)
        return views

    def fill(self, step: Step, columns: int) -> None:
        """Copy a step in. Table columns past the step's own point at page 0, which no kernel reads through them."""
        _, S, P = step_shape(step)
        for name in ("ids", "positions", "slots", "spans", "lengths", "last"):
            source: Ints = getattr(step, name)
            np.copyto(self._arrays[name][: source.size], source.reshape(-1))
        tables = self._arrays["tables"][: S * columns].reshape(S, columns)
        tables[:, :P] = step.tables
        tables[:, P:] = 0
