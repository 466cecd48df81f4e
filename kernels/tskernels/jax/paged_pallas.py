"""Attention of tiles of rows over pages, as one Pallas kernel for TPUs: a page is brought in while the one before is looked at.

N tiles of R rows, which are B rows of the step times G query heads; K key heads, queries and keys of W elements and values of E.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tskernels.jax.tiles import Tiles

Heads = Callable[[Any, int], tuple[Array, Array]]
"""Of a page in fast memory, a key head's keys [rows, W] and values [rows, E]."""
_LEAST = float(np.finfo(np.float32).min)


def attend_pallas(
    tiles: Tiles, q_NBKGW: Array, cache: Array, heads: Heads, width: int, tables: Array, *, scale: float, window: int, softcap: float = 0.0
) -> Array:
    """`[N, B, K, G, E]` in the type of q, E being `width`; zeros in rows that are none."""
    n, b, k, g, w = q_NBKGW.shape
    page_size, rows = cache.shape[1], b * g
    with jax.enable_x64(False):  # a kernel's indices are of 32 bits
        reach = jnp.maximum(tiles.oldest - window + 1, 0) if window else jnp.zeros_like(tiles.oldest)
        first, last = reach // page_size, jnp.maximum(tiles.newest, 0) // page_size
        steps = jnp.maximum((last - first + 1).max(), 1)
        scalars = (tiles.sequence, first, last, tiles.oldest, tiles.newest, tables)
        # Of rows that are none, before all keys. An integer division by G in the kernel is none of a TPU's.
        positions = jnp.where(tiles.valid, tiles.positions, -1).repeat(g, 1)[:, :, None]

        def page(n: Array, j: Array, sequence: Any, first: Any, last: Any, oldest: Any, newest: Any, tables: Any) -> tuple[Any, ...]:
            # Past a tile's last page the same again, which is not fetched again. A tile without rows has no page.
            own = tables[sequence[n], jnp.minimum(first[n] + j, last[n])]
            return (jnp.where(newest[n] >= 0, own, 0), *[0] * (cache.ndim - 1))

        def tile(n: Array, j: Array, *scalars: Any) -> tuple[Any, ...]:
            return n, 0, 0, 0

        def rows_of(n: Array, j: Array, *scalars: Any) -> tuple[Any, ...]:
            return n, 0, 0

        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(n, steps),
            in_specs=[pl.BlockSpec((1, rows, 1), rows_of), pl.BlockSpec((1, k, rows, w), tile), pl.BlockSpec((1, *cache.shape[1:]), page)],
            out_specs=pl.BlockSpec((1, k, rows, width), tile),
            scratch_shapes=[
                pltpu.VMEM((k, rows, 1), jnp.float32),
                pltpu.VMEM((k, rows, 1), jnp.float32),
                pltpu.VMEM((k, rows, width), jnp.float32),
            ],
        )
        kernel = partial(_kernel, heads=heads, page_size=page_size, scale=scale, window=window, softcap=softcap)
        shape = jax.ShapeDtypeStruct((n, k, rows, width), q_NBKGW.dtype)
        queries = q_NBKGW.transpose(0, 2, 1, 3, 4).reshape(n, k, rows, w)
        made: Array = pl.pallas_call(kernel, grid_spec=grid, out_shape=shape)(*scalars, positions, queries, cache)
    return made.reshape(n, k, b, g, width).transpose(0, 2, 1, 3, 4)


def _kernel(
    sequence: Any,
    first: Any,
    last: Any,
    oldest: Any,
    newest: Any,
    tables: Any,
    positions: Any,
    queries: Any,
    cache: Any,
    out: Any,
    largest: Any,
    total: Any,
    result: Any,
    *,
    heads: Heads,
    page_size: int,
    scale: float,
    window: int,
    softcap: float,
) -> None:
    """One page of one tile: what was seen before is in `largest`, `total` [K, R, 1] and `result [K, R, E]`."""
    n, j = pl.program_id(0), pl.program_id(1)

    @pl.when(j == 0)
    def begin() -> None:
        largest[...] = jnp.full(largest.shape, _LEAST, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        result[...] = jnp.zeros(result.shape, jnp.float32)

    @pl.when(first[n] + j <= last[n])
    def look() -> None:
        rows = queries.shape[2]
        before = (first[n] + j) * page_size
        distance = positions[0] - before - lax.broadcasted_iota(jnp.int32, (rows, page_size), 1)
        seen = distance >= 0
        key = before + lax.broadcasted_iota(jnp.int32, (page_size, 1), 0)
        written = key <= newest[n]
        if window:
            seen &= distance < window
            written &= key > oldest[n] - window
        for head in range(queries.shape[1]):
            keys, values = heads(cache, head)
            scores = _product(queries[0, head], keys, 1) * scale
            if softcap:
                scores = softcap * jnp.tanh(scores / softcap)
            scores = jnp.where(seen, scores, -jnp.inf)
            values = jnp.where(written, values, jnp.zeros_like(values))  # what nobody sees may be NaN
            higher = jnp.maximum(largest[head], scores.max(-1, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(largest[head] - higher)
            largest[head] = higher
            total[head] = total[head] * shrink + weights.sum(-1, keepdims=True)
            result[head] = result[head] * shrink + _product(weights.astype(values.dtype), values, 0)

    @pl.when(j == pl.num_programs(1) - 1)
    def end() -> None:
        out[0] = (result[...] / jnp.where(total[...] == 0, 1.0, total[...])).astype(out.dtype)


def _product(x: Array, y: Array, summed: int) -> Array:
    """`x [R, J]` with dimension `summed` of y, in f32."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    made: Array = lax.dot_general(x, y, (((1,), (summed,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
    return made
