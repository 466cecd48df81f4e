"""Writing to paged caches, in place where the program gives them away."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from tskernels.cost import append_bound
from tskernels.jax.entry import jax_kernel


@jax_kernel("ts::cache_append", cost=append_bound)
def cache_append(cache: Array, k: Array, v: Array, slots: Array) -> Array:
    return cache.at[slots // cache.shape[1], slots % cache.shape[1]].set(jnp.stack((k, v), 1))


@jax_kernel("ts::latent_append", cost=append_bound)
def latent_append(cache: Array, latent: Array, rotated: Array, slots: Array) -> Array:
    return cache.at[slots // cache.shape[1], slots % cache.shape[1]].set(jnp.concatenate((latent, rotated), -1))
