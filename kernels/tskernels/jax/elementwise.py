"""Nonlinearities, sums, products, scaling and capping: in f32, rounded once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from tskernels.jax.entry import jax_kernel
from tskernels.jax.types import wide


@jax_kernel("ts::silu")
def silu(x: Array) -> Array:
    return jax.nn.silu(wide(x)).astype(x.dtype)


@jax_kernel("ts::sigmoid")
def sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(wide(x)).astype(x.dtype)


@jax_kernel("ts::gelu")
def gelu(x: Array) -> Array:
    return jax.nn.gelu(wide(x), approximate=False).astype(x.dtype)


@jax_kernel("ts::gelu_tanh")
def gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(wide(x), approximate=True).astype(x.dtype)


@jax_kernel("ts::add")
def add(x: Array, y: Array) -> Array:
    return (wide(x) + wide(y)).astype(x.dtype)


@jax_kernel("ts::mul")
def mul(x: Array, y: Array) -> Array:
    return (wide(x) * wide(y)).astype(x.dtype)


@jax_kernel("ts::scale")
def scale(x: Array, factor: float) -> Array:
    return (wide(x) * factor).astype(x.dtype)


@jax_kernel("ts::scale_rows")
def scale_rows(x: Array, factors: Array) -> Array:
    return (wide(x) * wide(factors)).astype(x.dtype)


@jax_kernel("ts::softcap")
def softcap(x: Array, cap: float) -> Array:
    return (cap * jnp.tanh(wide(x) / cap)).astype(x.dtype)
