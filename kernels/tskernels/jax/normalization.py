"""Root mean square normalization, whole or in steps that ranks share out."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from tskernels.jax.entry import jax_kernel
from tskernels.jax.types import wide


@jax_kernel("ts::rms_norm")
def rms_norm(x: Array, w: Array, eps: float, offset: float) -> Array:
    inner = wide(x)
    inverse = lax.rsqrt(jnp.mean(jnp.square(inner), -1, keepdims=True) + eps)
    return (inner * inverse * (w.astype(inner.dtype) + offset)).astype(x.dtype)


@jax_kernel("ts::row_squares")
def row_squares(x: Array) -> Array:
    return jnp.square(wide(x)).reshape(x.shape[0], -1).sum(-1)


@jax_kernel("ts::rms_scale")
def rms_scale(x: Array, squares: Array, w: Array, eps: float, offset: float, count: int) -> Array:
    inner = wide(x)
    inverse = lax.rsqrt(squares.astype(inner.dtype) / count + eps).reshape(-1, *[1] * (x.ndim - 1))
    return (inner * inverse * (w.astype(inner.dtype) + offset)).astype(x.dtype)
