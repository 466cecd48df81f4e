"""Attention of tiles of rows over pages, by XLA: a softmax that is kept up to date, some pages at a time.

N tiles of B rows; K key heads with G query heads each, queries and keys of W elements and values of E; J keys at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tskernels.jax.contraction import product
from tskernels.jax.tiles import Tiles
from tskernels.jax.types import compute_dtype

Load = Callable[[Array], tuple[Array, Array]]
"""Keys [N, J, K, W] and values [N, J, K, E] of pages [N, pages]."""
_KEYS = 128
"""At a time, about."""


def attend(
    tiles: Tiles,
    q_NBKGW: Array,
    load: Load,
    tables: Array,
    page_size: int,
    *,
    scale: float,
    window: int,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """`[N, B, K, G, E]` in f32; of rows that are none something finite. Pages before a window and past a sequence's end are another's."""
    pages = max(1, _KEYS // page_size)  # at a time, from a multiple of it on: a key meets the same others in any chunk
    block = pages * page_size
    reach = jnp.maximum(tiles.oldest - window + 1, 0) if window else jnp.zeros_like(tiles.oldest)
    first = reach // block
    count = jnp.maximum(tiles.newest // block + 1 - first, 0).max()
    dtype = compute_dtype(q_NBKGW.dtype)
    own = tables[tiles.sequence]

    def turn(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, result = carry
        page = ((first + i) * pages)[:, None] + jnp.arange(pages, dtype=jnp.int32)
        keys, values = load(jnp.take_along_axis(own, jnp.minimum(page, tables.shape[1] - 1), 1))
        position = (page[..., None] * page_size + jnp.arange(page_size, dtype=jnp.int32)).reshape(len(own), 1, block)
        distance = tiles.positions[..., None] - position
        seen = (distance >= 0) & tiles.valid[..., None] & (page < tables.shape[1]).repeat(page_size, 1)[:, None]
        if window:
            seen &= distance < window
        scores = product("nbkgw,njkw->nkgbj", q_NBKGW, keys) * scale
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        values = jnp.where(seen.any(1)[..., None, None], values, jnp.zeros((), values.dtype))  # what nobody sees may be NaN
        higher = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp(scores - higher[..., None])
        shrink = jnp.exp(largest - higher)
        made = product("nkgbj,njke->nkgbe", weights.astype(values.dtype), values)
        return higher, total * shrink + weights.sum(-1), result * shrink[..., None] + made

    n, b, k, g, _ = q_NBKGW.shape
    width = load(jnp.zeros((1, 1), jnp.int32))[1].shape[-1]
    rows = (n, k, g, b)
    # A sink is a score that is there from the start; else less than any score, and finite: what has seen nothing stays so.
    least = jnp.full(rows, np.finfo(dtype).min, dtype) if sinks is None else jnp.broadcast_to(sinks.astype(dtype)[..., None], rows)
    begun = jnp.full(rows, 0 if sinks is None else 1, dtype)
    carry = (least, begun, jnp.zeros((*rows, width), dtype))
    _, total, result = lax.fori_loop(jnp.int32(0), count, turn, carry)
    made: Array = result / jnp.where(total == 0, 1, total)[..., None]
    return made.transpose(0, 3, 1, 2, 4)
