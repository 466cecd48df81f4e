"""Products with weights, and of two values: summed in f32, rounded once."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

from tskernels.cost import einsum_bound, matmul_bound
from tskernels.jax.elementwise import gelu, gelu_tanh, silu
from tskernels.jax.entry import jax_kernel
from tskernels.jax.types import compute_dtype

_ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def product(equation: str, x: Array, y: Array) -> Array:
    """An einsum whose sums, and result, are f32 (f64 for f64). A TPU would else multiply f32 in bf16."""
    return jnp.einsum(equation, x, y, precision=Precision.HIGHEST, preferred_element_type=compute_dtype(x.dtype))


@jax_kernel("ts::linear", cost=matmul_bound)
def linear(x: Array, w: Array, bias: Array | None = None) -> Array:
    made = product("...i,oi->...o", x, w)
    return (made if bias is None else made + bias.astype(made.dtype)).astype(x.dtype)


@jax_kernel("ts::gated_linear", cost=matmul_bound)
def gated_linear(x: Array, w: Array, activation: str) -> Array:
    gate, up = jnp.split(product("...i,oi->...o", x, w), 2, axis=-1)
    return (_ACTIVATIONS[activation](gate) * up).astype(x.dtype)


@jax_kernel("ts::einsum", cost=einsum_bound)
def einsum(x: Array, y: Array, equation: str) -> Array:
    return product(equation, x, y).astype(x.dtype)
