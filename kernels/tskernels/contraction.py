"""Products of two values over named dimensions."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tskernels.cost import einsum_bound
from tskernels.dtypes import compute_dtype
from tskernels.linear import FEWEST_ROWS
from tskernels.registry import kernel, one_float_type, op


@op("ts::einsum", cost=einsum_bound)
def einsum(x: Tensor, y: Tensor, equation: str) -> Tensor:
    """`equation` as in `the,hec->thc`: a letter a dimension, those that the result lacks are summed over; in f32, rounded once."""
    dtype = compute_dtype(x.dtype)
    return torch.einsum(equation, x.to(dtype), y.to(dtype)).to(x.dtype).contiguous()


@kernel("ts::einsum", name="torch", when=one_float_type, cost=einsum_bound)
def einsum_torch(x: Tensor, y: Tensor, equation: str, *, out: Tensor) -> None:
    """One batched gemm. Few rows are padded with zeros, as `linear` does, so that a row's bits do not depend on how many there are."""
    operands, result = equation.split("->")
    first, second = operands.split(",")
    batch = [c for c in first if c in second and c in result]
    summed = [c for c in first if c in second and c not in result]
    rows, columns = [c for c in first if c not in second], [c for c in second if c not in first]
    sizes = dict(zip(first, x.shape, strict=True)) | dict(zip(second, y.shape, strict=True))

    def matrices(value: Tensor, letters: str, left: list[str], right: list[str]) -> Tensor:
        ordered = value.permute([letters.index(c) for c in (*batch, *left, *right)])
        return ordered.reshape(*(prod(sizes[c] for c in group) for group in (batch, left, right)))

    a, b = matrices(x, first, rows, summed), matrices(y, second, summed, columns)
    fewest, count = FEWEST_ROWS.get(x.dtype, 0), a.shape[1]
    if count < fewest:
        padded = a.new_zeros(a.shape[0], fewest, a.shape[2])
        padded[:, :count] = a
        a = padded
    made = torch.bmm(a, b)[:, :count].reshape([sizes[c] for c in (*batch, *rows, *columns)])
    out.copy_(made.permute([(*batch, *rows, *columns).index(c) for c in result]))
