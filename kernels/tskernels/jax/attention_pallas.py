"""Attention over paged caches, of keys and values or of latent rows, for TPUs: pages are read once, where they lie."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from tskernels.cost import attention_bound, latent_attention_bound
from tskernels.expansion import all_absorbed
from tskernels.jax.entry import jax_kernel
from tskernels.jax.paged_pallas import attend_pallas
from tskernels.jax.tiles import tiles_of
from tskernels.registry import Call
from tskernels.target import Target

TPU = Target("jax", frozenset({"tpu"}))


def _is_narrow(call: Call) -> bool:
    """elements of bf16 or f32."""
    return call.operands[0].dtype in ("bf16", "f32")


def _is_narrow_and_absorbed(call: Call) -> bool:
    """elements of bf16 or f32, and that all sequences are absorbed."""
    return _is_narrow(call) and all_absorbed(call)


@jax_kernel("ts::attention", name="pallas", target=TPU, when=_is_narrow, cost=attention_bound)
def attention(
    q: Array, cache: Array, spans: Array, lengths: Array, tables: Array, shard: int, scale: float, window: int, softcap: float
) -> Array:
    tiles = tiles_of(spans, lengths, len(q), shard)

    def heads(page: Any, head: int) -> tuple[Array, Array]:
        return page[0, :, 0, head], page[0, :, 1, head]

    made = attend_pallas(tiles, tiles.gathered(q), cache, heads, q.shape[-1], tables, scale=scale, window=window, softcap=softcap)
    return tiles.scattered(made, len(q))


@jax_kernel("ts::latent_attention", name="pallas", target=TPU, when=_is_narrow_and_absorbed, cost=latent_attention_bound)
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
    """All heads are rows of one product with a page, whose rows are keys and, at their beginning, values."""
    tiles, width = tiles_of(spans, lengths, len(q), shard), q.shape[2]

    def heads(page: Any, head: int) -> tuple[Array, Array]:
        rows = page[0]
        return rows, rows[:, :width]

    queries = tiles.gathered(jnp.concatenate((q, rotated), -1))[:, :, None]
    made = attend_pallas(tiles, queries, cache, heads, width, tables, scale=scale, window=window)
    return tiles.scattered(made[:, :, 0], len(q))
