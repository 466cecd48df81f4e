"""Choosing and normalizing within rows; keys as in `tskernels/rows.py`."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from tskernels.jax.entry import jax_kernel
from tskernels.jax.types import wide

_LOW = 0xFFFFFFFF


def _keys(x: Array, shard: int) -> Array:
    """Keys of numbers `x [..., V]`, whose indices start at `shard * V`; NaN orders above all."""
    index = jnp.arange(x.shape[-1], dtype=jnp.int64) + jnp.int64(shard) * x.shape[-1]
    numbers = jnp.where(jnp.isnan(x), jnp.nan, x.astype(jnp.float32) + 0.0)  # one NaN, one zero
    bits = lax.bitcast_convert_type(numbers.astype(jnp.float32), jnp.int32).astype(jnp.int64)
    ordered = jnp.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    keys: Array = (ordered << 32) + (_LOW - index)
    return keys


def _numbers(keys: Array) -> Array:
    ordered = keys >> 32
    bits = jnp.where(ordered < 0, (-(ordered + 1)) - (1 << 31), ordered)
    return lax.bitcast_convert_type(bits.astype(jnp.int32), jnp.float32)


@jax_kernel("ts::max_key")
def max_key(x: Array, shard: int) -> Array:
    return _keys(x, shard).max(-1)


@jax_kernel("ts::top_keys")
def top_keys(x: Array, shard: int, k: int, width: int) -> Array:
    return lax.top_k(_keys(x, shard).reshape(*x.shape[:-1], -1, width), k)[0]


@jax_kernel("ts::merge_keys")
def merge_keys(keys: Array) -> Array:
    return lax.top_k(keys.reshape(*keys.shape[:-2], -1), keys.shape[-1])[0]


@jax_kernel("ts::key_index")
def key_index(keys: Array) -> Array:
    return jnp.where(jnp.isfinite(_numbers(keys)), _LOW - (keys & _LOW), -1).astype(jnp.int32)


@jax_kernel("ts::key_value")
def key_value(keys: Array) -> Array:
    return _numbers(keys)


@jax_kernel("ts::row_max")
def row_max(x: Array) -> Array:
    return wide(x).max(-1)


@jax_kernel("ts::row_sum")
def row_sum(x: Array) -> Array:
    return wide(x).sum(-1)


@jax_kernel("ts::exp_minus")
def exp_minus(x: Array, of_row: Array) -> Array:
    return jnp.exp(wide(x) - of_row[..., None])


@jax_kernel("ts::divide_rows")
def divide_rows(x: Array, of_row: Array) -> Array:
    return x / of_row[..., None]
