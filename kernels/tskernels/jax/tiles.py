"""A step's rows as tiles: a few neighbouring rows of one sequence, so that a page is read once for all of them.

T rows here, S sequences in the step, N tiles of B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

ROWS = 16
"""Of a tile at most: what a TPU's matrix unit takes at least, with a few heads each."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """sequence [N]: whose rows they are; rows, valid [N, B]: rows of the step here, and whether they are any; positions [N, B]: of them
    in their sequence; oldest, newest [N]: positions of a tile's first and last row, 0 and -1 of a tile without rows."""

    sequence: Array
    rows: Array
    valid: Array
    positions: Array
    oldest: Array
    newest: Array

    def gathered(self, x: Array) -> Array:
        """`x [T, ...]` to `[N, B, ...]`."""
        return x[self.rows]

    def scattered(self, tiles: Array, num_rows: int) -> Array:
        """`tiles [N, B, ...]` to `[T, ...]`, with zeros in rows of no sequence."""
        places = jnp.where(self.valid, self.rows, num_rows)
        return jnp.zeros((num_rows, *tiles.shape[2:]), tiles.dtype).at[places].set(tiles, mode="drop")


def own_spans(spans: Array, num_rows: int, shard: int | Array) -> tuple[Array, Array]:
    """First and past-the-last row here of each sequence, [S] both; equal where it has none. The rows here are the step's from
    `shard * num_rows` on."""
    begin = jnp.asarray(shard, jnp.int32) * num_rows
    first = jnp.clip(spans[:, 0] - begin, 0, num_rows)
    return first, jnp.maximum(first, jnp.clip(spans[:, 1] - begin, 0, num_rows))


def tiles_of(spans: Array, lengths: Array, num_rows: int, shard: int | Array) -> Tiles:
    """`spans i32[S, 2]`, `lengths i32[S]` of a step with `num_rows` rows here: as many tiles as a step of that shape can have."""
    sequences, width = len(lengths), min(ROWS, num_rows)
    first, last = own_spans(spans, num_rows, shard)
    counts = -(-(last - first) // width)
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    number = jnp.arange(min(num_rows, num_rows // width + sequences), dtype=jnp.int32)
    sequence = jnp.clip(jnp.searchsorted(ends, number, side="right").astype(jnp.int32), 0, sequences - 1)
    within = (number - (ends - counts)[sequence]) * width
    rows = (first[sequence] + within)[:, None] + jnp.arange(width, dtype=jnp.int32)
    valid = (rows < last[sequence, None]) & (number < ends[-1])[:, None]
    positions = (lengths - last)[sequence, None] + rows
    any_rows = valid[:, 0]
    newest = jnp.where(valid, positions, -1).max(-1)
    return Tiles(sequence, jnp.clip(rows, 0, num_rows - 1), valid, positions, jnp.where(any_rows, positions[:, 0], 0), newest)
