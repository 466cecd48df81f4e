"""Root mean square normalization."""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.cost import add_norm_bound, composed
from tskernels.dtypes import compute_dtype
from tskernels.elementwise import add
from tskernels.registry import kernel, op
from tskernels.target import ANY


@op("ts::rms_norm")
def rms_norm(x: Tensor, w: Tensor, eps: float, offset: float) -> Tensor:
    """`x [..., E]`, `w [E]`: `x * rsqrt(mean(x^2) + eps) * (w + offset)` in f32, rounded once."""
    wide = x.to(compute_dtype(x.dtype))
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * inverse * (w.to(wide.dtype) + offset)).to(x.dtype)


@kernel("ts::rms_norm", name="torch", target=ANY, cost=composed(7))
def rms_norm_torch(x: Tensor, w: Tensor, eps: float, offset: float, *, out: Tensor) -> None:
    """The reference's steps, each into memory that is there already."""
    dtype = compute_dtype(x.dtype)
    wide = x if x.dtype == dtype else x.to(dtype)
    inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    gain = w if w.dtype == dtype else w.to(dtype)
    if offset:
        gain = gain + offset
    if out.dtype == dtype:
        torch.mul(wide, inverse, out=out).mul_(gain)
    else:
        torch.mul(wide * inverse, gain, out=out)


@op("ts::add_norm", cost=add_norm_bound)
def add_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float, offset: float) -> Tensor:
    """`x [T, D]`, `residual [T, D]`, `w [D]` to `[T, 2*D]`: their sum, and beside it the `rms_norm` of that."""
    total = add(residual, x)
    return torch.cat((total, rms_norm(total, w, eps, offset)), -1)


@op("ts::row_squares")
def row_squares(x: Tensor) -> Tensor:
    """`x [T, ...]` to the sum of the squares of each row, `f32[T]`: what ranks that share out a row add up to normalize it."""
    return x.to(compute_dtype(x.dtype)).square().flatten(1).sum(-1)


@kernel("ts::row_squares", name="torch", target=ANY, cost=composed(4))
def row_squares_torch(x: Tensor, *, out: Tensor) -> None:
    out.copy_(row_squares(x))


@op("ts::rms_scale")
def rms_scale(x: Tensor, squares: Tensor, w: Tensor, eps: float, offset: float, count: int) -> Tensor:
    """`x [T, ...]`, `squares f32[T]` of whole rows of `count` elements, `w [...]`: `x * rsqrt(squares / count + eps) * (w + offset)` in
    f32, rounded once."""
    wide = x.to(compute_dtype(x.dtype))
    inverse = torch.rsqrt(squares.to(wide.dtype) / count + eps).view(-1, *[1] * (x.dim() - 1))
    return (wide * inverse * (w.to(wide.dtype) + offset)).to(x.dtype)


@kernel("ts::rms_scale", name="torch", target=ANY, cost=composed(7))
def rms_scale_torch(x: Tensor, squares: Tensor, w: Tensor, eps: float, offset: float, count: int, *, out: Tensor) -> None:
    out.copy_(rms_scale(x, squares, w, eps, offset, count))
