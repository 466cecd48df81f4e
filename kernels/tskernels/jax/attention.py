"""Attention over paged caches of keys and values, and of latent rows, as XLA's operations: it copies the pages that it reads."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from tskernels.cost import Cost, attention_bound, latent_attention_bound, sink_attention_bound
from tskernels.expansion import all_absorbed
from tskernels.jax.entry import jax_kernel
from tskernels.jax.paged import attend
from tskernels.jax.tiles import tiles_of
from tskernels.registry import Call
from tskernels.target import Target


def _copying(cost: Cost) -> Cost:
    """Of pages that are read, written elsewhere, and read again."""

    def twice(call: Call, target: Target) -> float:
        return 3 * cost(call, target)

    return twice


@jax_kernel("ts::attention", cost=_copying(attention_bound))
def attention(
    q: Array, cache: Array, spans: Array, lengths: Array, tables: Array, shard: int, scale: float, window: int, softcap: float
) -> Array:
    return _attention(q, cache, None, spans, lengths, tables, shard, scale, window, softcap)


@jax_kernel("ts::sink_attention", cost=_copying(sink_attention_bound))
def sink_attention(
    q: Array,
    cache: Array,
    sinks: Array,
    spans: Array,
    lengths: Array,
    tables: Array,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
) -> Array:
    return _attention(q, cache, sinks, spans, lengths, tables, shard, scale, window, softcap)


def _attention(
    q: Array,
    cache: Array,
    sinks: Array | None,
    spans: Array,
    lengths: Array,
    tables: Array,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
) -> Array:
    tiles = tiles_of(spans, lengths, len(q), shard)

    def load(pages: Array) -> tuple[Array, Array]:
        found = cache[pages].reshape(len(pages), -1, *cache.shape[2:])
        return found[:, :, 0], found[:, :, 1]

    made = attend(tiles, tiles.gathered(q), load, tables, cache.shape[1], scale=scale, window=window, softcap=softcap, sinks=sinks)
    return tiles.scattered(made.astype(q.dtype), len(q))


@jax_kernel("ts::latent_attention", when=all_absorbed, cost=_copying(latent_attention_bound))
def latent_attention(
    q: Array,
    rotated: Array,
    cache: Array,
    spans: Array,
    lengths: Array,
    tables: Array,
    shard: int,
    scale: float,
    window: int,
    expanded_from: int = 0,
) -> Array:
    """Heads are query heads of one key head, the row, whose value is its beginning."""
    tiles = tiles_of(spans, lengths, len(q), shard)

    def load(pages: Array) -> tuple[Array, Array]:
        found = cache[pages].reshape(len(pages), -1, 1, cache.shape[2])
        return found, found[..., : q.shape[2]]

    queries = tiles.gathered(jnp.concatenate((q, rotated), -1))[:, :, None]
    made = attend(tiles, queries, load, tables, cache.shape[1], scale=scale, window=window)[:, :, 0]
    return tiles.scattered(made.astype(q.dtype), len(q))
