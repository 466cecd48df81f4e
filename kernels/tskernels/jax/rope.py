"""Rotary position embedding: the frequencies are constants of the program, angles in f32."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from tskernels.jax.entry import jax_kernel
from tskernels.jax.types import wide
from tskernels.rope import inverse_frequencies
from tskernels.rope_kinds import magnitude_of, turned_width


@jax_kernel("ts::rope")
def rope(
    x: Array, positions: Array, theta: float, kind: str, parameters: Sequence[float], interleaved: bool, fraction: float = 1.0
) -> Array:
    width = turned_width(x.shape[-1], fraction)
    frequencies = inverse_frequencies(width, float(theta), kind, tuple(map(float, parameters))).numpy()
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)
    angles = angles.reshape(x.shape[0], *[1] * (x.ndim - 2), width // 2)
    magnitude = magnitude_of(kind, parameters)
    cosine, sine = jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude
    turning = wide(x[..., :width])
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else jnp.split(turning, 2, axis=-1)
    turned = first * cosine - second * sine, second * cosine + first * sine
    made = jnp.stack(turned, -1).reshape(turning.shape) if interleaved else jnp.concatenate(turned, -1)
    return jnp.concatenate((made.astype(x.dtype), x[..., width:]), -1)
