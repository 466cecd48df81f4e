"""Ops that see the mesh, each one collective of XLA within a `shard_map`. An axis is names joined by `*`, major to minor."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from tskernels.cost import message_bound
from tskernels.jax.entry import jax_kernel


def _names(axis: str) -> tuple[str, ...]:
    return tuple(axis.split("*"))


@jax_kernel("ts::all_reduce", cost=message_bound)
def all_reduce(x: Array, axis: str, reduction: str) -> Array:
    made: Array = lax.pmax(x, _names(axis)) if reduction == "max" else lax.psum(x, _names(axis))
    return made


@jax_kernel("ts::all_gather", cost=message_bound)
def all_gather(x: Array, axis: str, dim: int) -> Array:
    made: Array = lax.all_gather(x, _names(axis), axis=dim % x.ndim, tiled=True)
    return made


@jax_kernel("ts::reduce_scatter", cost=message_bound)
def reduce_scatter(x: Array, axis: str, dim: int) -> Array:
    made: Array = lax.psum_scatter(x, _names(axis), scatter_dimension=dim % x.ndim, tiled=True)
    return made


@jax_kernel("ts::all_to_all", cost=message_bound)
def all_to_all(x: Array, axis: str, split_dim: int, concat_dim: int) -> Array:
    made: Array = lax.all_to_all(x, _names(axis), split_dim % x.ndim, concat_dim % x.ndim, tiled=True)
    return made


@jax_kernel("ts::local_slice", cost=message_bound)
def local_slice(x: Array, axis: str, dim: int) -> Array:
    size = x.shape[dim] // lax.axis_size(_names(axis))
    return lax.dynamic_slice_in_dim(x, lax.axis_index(_names(axis)) * size, size, dim % x.ndim)


@jax_kernel("ts::keep_first", cost=message_bound)
def keep_first(x: Array, axis: str) -> Array:
    return jnp.where(lax.axis_index(_names(axis)) == 0, x, jnp.zeros((), x.dtype))
