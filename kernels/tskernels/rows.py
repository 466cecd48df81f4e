"""Choosing and normalizing within rows, in steps that ranks can share.

A *key* is an i64 that orders like the pair (number, earlier index first): the number's f32 bits, made to order as integers, above
the index counted down. So the largest key is the largest number's first place, and keys of several ranks compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.cost import composed
from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, op
from tskernels.target import ANY

_LOW = 0xFFFFFFFF


def _keys(x: Tensor, index: Tensor) -> Tensor:
    """Keys of numbers `x` at `index`; NaN orders above all."""
    numbers = torch.where(x.isnan(), torch.nan, x.float() + 0.0)  # one NaN, one zero
    bits = numbers.contiguous().view(torch.int32).long()
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    return (ordered << 32) + (_LOW - index)


def _numbers(keys: Tensor) -> Tensor:
    ordered = keys >> 32
    bits = torch.where(ordered < 0, (-(ordered + 1)) - (1 << 31), ordered)
    return bits.int().view(torch.float32)


def _indices(x: Tensor, shard: int) -> Tensor:
    return torch.arange(x.shape[-1], dtype=torch.int64, device=x.device) + shard * x.shape[-1]


@op("ts::max_key")
def max_key(x: Tensor, shard: int) -> Tensor:
    """`x [..., V]` to the largest key, `i64[...]`, of rows whose indices start at `shard * V`."""
    return _keys(x, _indices(x, shard)).amax(-1)


@kernel("ts::max_key", name="torch", target=ANY, cost=composed(12))
def max_key_torch(x: Tensor, shard: int, *, out: Tensor) -> None:
    """Keys only of what is largest; the first of equal numbers."""
    numbers = x.float()
    largest = numbers.amax(-1, keepdim=True)  # NaN where there is one
    found = (numbers == largest) | (largest.isnan() & numbers.isnan())
    index = torch.where(found, _indices(x, shard), _LOW).amin(-1)
    out.copy_(_keys(largest[..., 0], index))


@op("ts::top_keys")
def top_keys(x: Tensor, shard: int, k: int, width: int) -> Tensor:
    """`x [..., B*width]` to the `k` largest keys of each block of `width`, `i64[..., B, k]`, largest first."""
    keys = _keys(x, _indices(x, shard)).view(*x.shape[:-1], -1, width)
    best: Tensor = keys.sort(dim=-1, descending=True).values[..., :k].contiguous()
    return best


@kernel("ts::top_keys", name="torch", target=ANY, cost=composed(12))
def top_keys_torch(x: Tensor, shard: int, k: int, width: int, *, out: Tensor) -> None:
    """A selection instead of a sort; keys are all different, so that it has one result."""
    keys = _keys(x, _indices(x, shard)).view(*x.shape[:-1], -1, width)
    out.copy_(keys.topk(k, dim=-1, sorted=True).values)


@op("ts::merge_keys")
def merge_keys(keys: Tensor) -> Tensor:
    """`keys i64[..., B, k]` to the `k` largest of all, `i64[..., k]`, largest first."""
    return keys.flatten(-2).sort(dim=-1, descending=True).values[..., : keys.shape[-1]].contiguous()


@kernel("ts::merge_keys", name="torch", target=ANY, cost=composed(3))
def merge_keys_torch(keys: Tensor, *, out: Tensor) -> None:
    """A selection instead of a sort."""
    out.copy_(keys.flatten(-2).topk(keys.shape[-1], dim=-1, sorted=True).values)


@op("ts::key_index")
def key_index(keys: Tensor) -> Tensor:
    """`keys i64[...]` to the index of each, `i32[...]`; -1 where the number is not finite."""
    return torch.where(_numbers(keys).isfinite(), _LOW - (keys & _LOW), -1).int()


@kernel("ts::key_index", name="torch", target=ANY, cost=composed(6))
def key_index_torch(keys: Tensor, *, out: Tensor) -> None:
    """The reference: a number a row."""
    out.copy_(key_index(keys))


@op("ts::key_value")
def key_value(keys: Tensor) -> Tensor:
    """`keys i64[...]` to the number of each, `f32[...]`."""
    return _numbers(keys)


@kernel("ts::key_value", name="torch", target=ANY, cost=composed(6))
def key_value_torch(keys: Tensor, *, out: Tensor) -> None:
    """The reference: a number a row."""
    out.copy_(_numbers(keys))


@op("ts::row_max")
def row_max(x: Tensor) -> Tensor:
    """`x [..., D]` to the largest number of each row, `f32[...]`."""
    return x.to(compute_dtype(x.dtype)).amax(-1)


@kernel("ts::row_max", name="torch", target=ANY, cost=composed(2))
def row_max_torch(x: Tensor, *, out: Tensor) -> None:
    """One pass; widened after it, which is exact."""
    out.copy_(x.amax(-1))


@op("ts::row_sum")
def row_sum(x: Tensor) -> Tensor:
    """`x [..., D]` to the sum of each row, `f32[...]`."""
    return x.to(compute_dtype(x.dtype)).sum(-1)


@kernel("ts::row_sum", name="torch", target=ANY)
def row_sum_torch(x: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    torch.sum(x, -1, dtype=out.dtype, out=out)


@op("ts::exp_minus")
def exp_minus(x: Tensor, of_row: Tensor) -> Tensor:
    """`exp(x - of_row)`, `x [..., D]` and `of_row f32[...]`, to `f32[..., D]`."""
    return (x.to(compute_dtype(x.dtype)) - of_row[..., None]).exp()


@kernel("ts::exp_minus", name="torch", target=ANY, cost=composed(2))
def exp_minus_torch(x: Tensor, of_row: Tensor, *, out: Tensor) -> None:
    """In `out`."""
    torch.sub(x, of_row[..., None], out=out).exp_()


@op("ts::divide_rows")
def divide_rows(x: Tensor, of_row: Tensor) -> Tensor:
    """`x / of_row`, `x f32[..., D]` and `of_row f32[...]`."""
    return x / of_row[..., None]


@kernel("ts::divide_rows", name="torch", target=ANY)
def divide_rows_torch(x: Tensor, of_row: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    torch.div(x, of_row[..., None], out=out)
