"""Ops that rename dimensions, and rows by index."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from tskernels.cost import free, gather_bound
from tskernels.jax.entry import jax_kernel


@jax_kernel("ts::narrow", cost=free)
def narrow(x: Array, start: int, length: int, dim: int = -1) -> Array:
    return lax.slice_in_dim(x, start, start + length, axis=dim)


@jax_kernel("ts::keep", cost=free)
def keep(x: Array, name: str) -> Array:
    return x


@jax_kernel("ts::split", cost=free)
def split(x: Array, sizes: Sequence[int], dim: int = -1) -> Array:
    dim %= x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


@jax_kernel("ts::merge", cost=free)
def merge(x: Array, count: int) -> Array:
    return x.reshape(*x.shape[: x.ndim - count], -1)


@jax_kernel("ts::embedding", cost=gather_bound(source=1, indices=0))
def embedding(ids: Array, table: Array, shard: int) -> Array:
    local = ids - shard * table.shape[0]
    inside = (local >= 0) & (local < table.shape[0])
    return jnp.where(inside[:, None], table[jnp.clip(local, 0, table.shape[0] - 1)], jnp.zeros((), table.dtype))


@jax_kernel("ts::take_rows", cost=gather_bound(source=0, indices=1))
def take_rows(x: Array, rows: Array) -> Array:
    return x[rows]
