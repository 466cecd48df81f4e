"""Recurrences over the tokens of a sequence, token after token, as in `tskernels/recurrent.py`; states are given away and returned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from tskernels.cost import recurrence_bound
from tskernels.jax.entry import jax_kernel
from tskernels.jax.tiles import own_spans
from tskernels.jax.types import compute_dtype, wide


def _owners(spans: Array, states: Array, num_rows: int, shard: int | Array) -> tuple[Array, Array, Array]:
    """Of each row here, [T]: its page, or the number of none where it is no sequence's; and whether it begins its sequence."""
    first, last = own_spans(spans, num_rows, shard)
    row = jnp.arange(num_rows, dtype=jnp.int32)[:, None]
    mine = (row >= first) & (row < last)
    sequence = mine.argmax(-1)
    owned = mine.any(-1)
    page = states[sequence]
    begins = owned & (page < 0) & (row[:, 0] == first[sequence])
    return jnp.where(page < 0, ~page, page), owned, begins


@jax_kernel("ts::short_conv", cost=recurrence_bound(state=2))
def short_conv(x: Array, w: Array, state: Array, spans: Array, states: Array, shard: int) -> tuple[Array, Array]:
    pages, owned, begins = _owners(spans, states, len(x), shard)
    dtype = compute_dtype(x.dtype)
    taps = jnp.moveaxis(w.squeeze(-2).astype(dtype), -1, 0)

    def token(kept: Array, given: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        value, page, is_owned, begin = given
        before = kept[page]
        seen = jnp.concatenate((jnp.where(begin, 0, before).astype(dtype), value.astype(dtype)[None]))
        made = (seen * taps).sum(0)
        return kept.at[page].set(jnp.where(is_owned, seen[1:].astype(kept.dtype), before)), jnp.where(is_owned, made, 0)

    state, made = lax.scan(token, state, (x, pages, owned, begins))
    return made.astype(x.dtype), state


@jax_kernel("ts::decay")
def decay(x: Array, rate: Array, bias: Array) -> Array:
    inner = wide(rate)
    return jnp.exp(-jnp.exp(inner) * jax.nn.softplus(x.astype(inner.dtype) + bias.astype(inner.dtype))).astype(rate.dtype)


@jax_kernel("ts::gated_delta", cost=recurrence_bound(state=5))
def gated_delta(
    q: Array,
    k: Array,
    v: Array,
    decay: Array,
    beta: Array,
    state: Array,
    spans: Array,
    states: Array,
    shard: int,
    scale: float,
    eps: float,
) -> tuple[Array, Array]:
    pages, owned, begins = _owners(spans, states, len(q), shard)
    dtype = compute_dtype(q.dtype)
    queries, keys = (_of_length_one(wide(x), eps) for x in (q, k))

    def token(kept: Array, given: tuple[Array, ...]) -> tuple[Array, Array]:
        query, key, value, keep, gain, page, is_owned, begin = given
        before = kept[page]
        matrix = jnp.where(begin, 0, before).astype(dtype) * keep[..., None, None]
        change = (value - (matrix * key[:, None, :, None]).sum(-2)) * gain[..., None]
        matrix = matrix + key[:, None, :, None] * change[..., None, :]
        made = (matrix * query[:, None, :, None]).sum(-2) * scale
        return kept.at[page].set(jnp.where(is_owned, matrix.astype(kept.dtype), before)), jnp.where(is_owned, made, 0)

    rows = (queries, keys, v.astype(dtype), decay.astype(dtype), beta.astype(dtype), pages, owned, begins)
    state, made = lax.scan(token, state, rows)
    return made.astype(v.dtype), state


def _of_length_one(x: Array, eps: float) -> Array:
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + eps)
