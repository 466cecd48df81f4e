"""What products in f32 may be off by, whatever the order of their sums. A fixed tolerance is passed now and then by one of thousands.

Expected results are in f64: T tokens or rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

UNIT = 2.0**-24
"""A rounding to f32, of the number's size."""
_FUNCTION = 8 * UNIT
"""An activation's own error, of the size of what it is of."""
_STEEPEST = 1.13
"""gelu's slope at most; those of the others are less."""


def sum_bound(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """As many roundings as a sum has terms, each of at most the sum of their sizes."""
    return (x.shape[-1] + 2) * UNIT * functional.linear(x.abs().double(), w.abs().double(), None if bias is None else bias.abs().double())


def linear_expected(x: Tensor, w: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [..., I], w [O, I], bias [O]: the result [..., O], and its bound."""
    expected = functional.linear(x.double(), w.double(), None if bias is None else bias.double())
    return expected, _rounded(expected, sum_bound(x, w, bias), x.dtype)


def gated_expected(x: Tensor, w: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """x [..., I], w [2 * O, I]: the activation of the products with the first half, times those with the second; and its bound."""
    gate, up = functional.linear(x.double(), w.double()).chunk(2, -1)
    gate_bound, up_bound = sum_bound(x, w).chunk(2, -1)
    found = _ACTIVATIONS[activation](gate)
    found_bound = _STEEPEST * gate_bound + _FUNCTION * (gate.abs() + gate_bound)
    expected = found * up
    bound = found_bound * (up.abs() + up_bound) + found.abs() * up_bound
    return expected, _rounded(expected, bound + UNIT * (expected.abs() + bound), x.dtype)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def _rounded(expected: Tensor, bound: Tensor, dtype: torch.dtype) -> Tensor:
    """With the rounding to the result's type."""
    return bound + 2.0**-8 * (expected.abs() + bound) if dtype == torch.bfloat16 else bound
