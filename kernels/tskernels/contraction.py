"""Products of two values over named dimensions."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tskernels.cost import composed, einsum_bound
from tskernels.dtypes import compute_dtype
from tskernels.equation import parsed
from tskernels.linear import FEWEST_ROWS
from tskernels.registry import kernel, one_float_type, op
from tskernels.target import ANY


@op("ts::einsum", cost=einsum_bound)
def einsum(x: Tensor, y: Tensor, equation: str) -> Tensor:
    """`equation` as in `the,hec->thc`: a letter a dimension, those that the result lacks are summed over; in f32, rounded once."""
    dtype = compute_dtype(x.dtype)
    return torch.einsum(equation, x.to(dtype), y.to(dtype)).to(x.dtype).contiguous()


@kernel("ts::einsum", name="torch", target=ANY, when=one_float_type, cost=composed(3, einsum_bound))
def einsum_torch(x: Tensor, y: Tensor, equation: str, *, out: Tensor) -> None:
    """One batched gemm. Few rows are padded with zeros, as `linear` does, so that a row's bits do not depend on how many there are."""
    e = parsed(equation)
    sizes = dict(zip(e.x, x.shape, strict=True)) | dict(zip(e.y, y.shape, strict=True))

    def matrices(value: Tensor, letters: str, left: str, right: str) -> Tensor:
        ordered = value.permute([letters.index(c) for c in e.batch + left + right])
        return ordered.reshape(*(prod(sizes[c] for c in group) for group in (e.batch, left, right)))

    a, b = matrices(x, e.x, e.rows, e.summed), matrices(y, e.y, e.summed, e.columns)
    fewest, count = FEWEST_ROWS.get(x.dtype, 0), a.shape[1]
    if count < fewest and a.device.type == "cpu":
        padded = a.new_zeros(a.shape[0], fewest, a.shape[2])
        padded[:, :count] = a
        a = padded
    made = e.batch + e.rows + e.columns
    product = torch.bmm(a, b)[:, :count].reshape([sizes[c] for c in made])
    out.copy_(product.permute([made.index(c) for c in e.out]))
