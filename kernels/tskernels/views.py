"""Ops that only rename dimensions of the same memory. Imports no torch: the runtime applies them to places as well."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from tskernels.registry import view_op

if TYPE_CHECKING:
    from torch import Tensor


@view_op("ts::narrow")
def narrow(x: Tensor, start: int, length: int, dim: int = -1) -> Tensor:
    """`x [..., O, ...]` to `[..., length, ...]`: elements `start` to `start + length` of dimension `dim`."""
    return x.narrow(dim, start, length)


@view_op("ts::keep")
def keep(x: Tensor, name: str) -> Tensor:
    """`x` itself, of which the runtime takes a copy: `name` is what another entry of the program calls it."""
    return x.view(*x.shape)


@view_op("ts::split")
def split(x: Tensor, sizes: Sequence[int], dim: int = -1) -> Tensor:
    """`x [..., A*B*C, ...]` to `[..., A, B, C, ...]`, `sizes` being A, B, C and `dim` the dimension."""
    dim %= x.dim()
    if prod(sizes) != x.shape[dim]:
        raise ValueError(f"split of a dimension of {x.shape[dim]} into {list(sizes)}, which holds {prod(sizes)}")
    return x.view(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


@view_op("ts::merge")
def merge(x: Tensor, count: int) -> Tensor:
    """`x [..., A, B, C]` to `[..., A*B*C]` where `count` is 3."""
    # view, not flatten: flatten copies where no alias exists, and the caller relies on an alias.
    return x.view(*x.shape[: x.dim() - count], prod(x.shape[x.dim() - count :]))
