"""Mixtures of experts: the routing of tokens, and the experts' gated MLPs.

T tokens, N experts, F inner and D outer elements.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from tskernels.cost import experts_bound
from tskernels.jax.contraction import product
from tskernels.jax.entry import jax_kernel
from tskernels.jax.types import compute_dtype, wide


@jax_kernel("ts::route")
def route(
    logits: Array,
    bias: Array | None = None,
    *,
    top_k: int,
    score: str,
    normalize: bool,
    scale: float,
    groups: int,
    top_groups: int,
    group_best: int,
) -> Array:
    inner = wide(logits)
    scores = jax.nn.sigmoid(inner) if score == "sigmoid" else jax.nn.softmax(inner, -1)
    ranked = scores if bias is None else scores + bias.astype(scores.dtype)
    if groups > 1:
        grouped = ranked.reshape(-1, groups, ranked.shape[-1] // groups)
        best = lax.top_k(grouped, group_best)[0].sum(-1)
        kept = _marked(best, lax.top_k(best, top_groups)[1])
        ranked = jnp.where(kept[..., None], grouped, -jnp.inf).reshape(ranked.shape)
    chosen = _marked(ranked, lax.top_k(ranked, top_k)[1])  # of equals the first
    weights = jnp.where(chosen, scores, 0)
    if normalize:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return (weights * scale).astype(logits.dtype)


def _marked(of: Array, places: Array) -> Array:
    """bool of `of [T, M]`: whether an element's place is among its row's `places [T, k]`."""
    return (places[..., None] == jnp.arange(of.shape[-1], dtype=places.dtype)).any(-2)


@jax_kernel("ts::experts", cost=experts_bound)
def experts(
    x: Array,
    weights: Array,
    gate: Array,
    up: Array,
    down: Array,
    gate_bias: Array | None = None,
    up_bias: Array | None = None,
    down_bias: Array | None = None,
    *,
    alpha: float = 1.0,
    limit: float = 0.0,
    offset: float = 0.0,
) -> Array:
    """A loop over the experts, which passes by those that no token has: of a few tokens' step only their experts' weights are read."""
    dtype = compute_dtype(x.dtype)

    def multiplied(rows: Array, w: Array, bias: Array | None, n: Array) -> Array:
        made = product("ti,oi->to", rows, w[n])
        return made if bias is None else made + bias[n].astype(made.dtype)

    def add(n: Array, total: Array) -> Array:
        inner = _gated(multiplied(x, gate, gate_bias, n), multiplied(x, up, up_bias, n), alpha, limit, offset)
        return total + weights[:, n, None].astype(dtype) * multiplied(inner.astype(x.dtype), down, down_bias, n)

    def expert(n: Array, total: Array) -> Array:
        added: Array = lax.cond((weights[:, n] != 0).any(), add, lambda n, total: total, n, total)
        return added

    first, last = jnp.int32(0), jnp.int32(gate.shape[0])
    total: Array = lax.fori_loop(first, last, expert, jnp.zeros((x.shape[0], down.shape[1]), dtype))
    return total.astype(x.dtype)


def _gated(gate: Array, up: Array, alpha: float, limit: float, offset: float) -> Array:
    """`g * sigmoid(alpha * g) * (u + offset)`: where there is a limit, of `gate` up to it and `up` within it."""
    if limit:
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (up + offset)
