"""The paged cache of keys and values: `[pages, page_size, 2, K, E]`, 0 keys and 1 values."""

from __future__ import annotations

from torch import Tensor

from tskernels.cost import append_bound, composed
from tskernels.registry import inplace_op, kernel
from tskernels.target import ANY


@inplace_op("ts::cache_append", cost=append_bound)
def cache_append(cache: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
    """Write `k`, `v [T, K, E]` at page `slot // page_size`, row `slot % page_size` of `slots i32[T]`; returns `cache`."""
    pages, rows = slots // cache.shape[1], slots % cache.shape[1]
    cache[pages, rows, 0] = k
    cache[pages, rows, 1] = v
    return cache


@kernel("ts::cache_append", name="torch", target=ANY, cost=composed(3, append_bound))
def cache_append_torch(cache: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
    """A slot is a row of the cache with pages and rows as one dimension."""
    rows = cache.view(-1, *cache.shape[2:])
    index = slots.long()
    rows.select(1, 0).index_copy_(0, index, k)
    rows.select(1, 1).index_copy_(0, index, v)
    return cache
