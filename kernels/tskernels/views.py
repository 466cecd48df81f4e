"""Ops that only rename dimensions of the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from tskernels.registry import view_op


@view_op("ts::narrow")
def narrow(x: Tensor, start: int, length: int) -> Tensor:
    """`x [..., O]` to `[..., length]`: elements `start` to `start + length` of the last dimension."""
    return x.narrow(-1, start, length)


@view_op("ts::split")
def split(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """`x [..., A*B*C]` to `[..., A, B, C]`, `sizes` being A, B, C."""
    if prod(sizes) != x.shape[-1]:
        raise ValueError(f"split of a dimension of {x.shape[-1]} into {list(sizes)}, which holds {prod(sizes)}")
    return x.view(*x.shape[:-1], *sizes)


@view_op("ts::merge")
def merge(x: Tensor, count: int) -> Tensor:
    """`x [..., A, B, C]` to `[..., A*B*C]` where `count` is 3."""
    # view, not flatten: flatten copies where no alias exists, and the caller relies on an alias.
    return x.view(*x.shape[: x.dim() - count], prod(x.shape[x.dim() - count :]))
