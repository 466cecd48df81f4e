"""Element types of JAX's arrays, and the type that arithmetic is done in."""

from __future__ import annotations

from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

DTYPES: Final[dict[str, DTypeLike]] = {
    "f64": jnp.float64,
    "f32": jnp.float32,
    "f16": jnp.float16,
    "bf16": jnp.bfloat16,
    "i64": jnp.int64,
    "i32": jnp.int32,
    "u8": jnp.uint8,
}


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What an op computes in before it rounds once: f32, and f64 for f64."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def wide(x: Array) -> Array:
    """In the type that arithmetic is done in."""
    return x.astype(compute_dtype(x.dtype))
