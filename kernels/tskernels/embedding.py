"""Rows of a table by index."""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.cost import composed, gather_bound
from tskernels.registry import kernel, op
from tskernels.target import ANY


@op("ts::embedding", cost=gather_bound(source=1, indices=0))
def embedding(ids: Tensor, table: Tensor, shard: int) -> Tensor:
    """`ids i32[T]`, `table [V, D]` to `[T, D]`; `table` holds the vocabulary's rows from `shard * V`, other ids give zeros."""
    local = ids - shard * table.shape[0]
    inside = (local >= 0) & (local < table.shape[0])
    rows = table[local.clamp(0, table.shape[0] - 1)]
    return torch.where(inside[:, None], rows, torch.zeros((), dtype=table.dtype, device=table.device))


@kernel("ts::embedding", name="torch", target=ANY, cost=composed(5, gather_bound(source=1, indices=0)))
def embedding_torch(ids: Tensor, table: Tensor, shard: int, *, out: Tensor) -> None:
    """Gather straight into `out`, then clear the rows of other shards."""
    local = ids - shard * table.shape[0] if shard else ids
    inside = local.clamp(0, table.shape[0] - 1)
    torch.index_select(table, 0, inside, out=out)
    # Not a product with a mask: a row may hold inf.
    out.masked_fill_((local != inside)[:, None], 0.0)


@op("ts::take_rows", cost=gather_bound(source=0, indices=1))
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x [T, ...]`, `rows i32[S]` to `[S, ...]`."""
    return x[rows]


@kernel("ts::take_rows", name="torch", target=ANY, cost=gather_bound(source=0, indices=1))
def take_rows_torch(x: Tensor, rows: Tensor, *, out: Tensor) -> None:
    """Gather straight into `out`."""
    torch.index_select(x, 0, rows, out=out)
