"""Recurrences over the tokens of a sequence, whose state is kept between steps: a short convolution, and the gated delta rule.

T tokens of S sequences in the step; K key heads with G value heads each; A elements of a key and E of a value; W taps. A sequence's
state is a page of `state`, named by `states i32[S]`: `~page` where the sequence begins with this step, from zeros. Tokens are taken one
after the other, whatever the step: so a sequence's bits are the same in any chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.attention import clear_unclaimed, own_sequences
from tskernels.cost import composed, recurrence_bound
from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, op
from tskernels.target import ANY


def _state_of(state: Tensor, page: int) -> Tensor:
    """A sequence's part of the states, zeros where it begins."""
    own = state[page if page >= 0 else ~page]
    if page < 0:
        own.zero_()
    return own


@op("ts::short_conv", cost=recurrence_bound(state=2), writes="state")
def short_conv(x: Tensor, w: Tensor, state: Tensor, spans: Tensor, states: Tensor, shard: int) -> Tensor:
    """`x [T, ...]`, taps `w [..., 1, W]` of each channel, `state f32[pages, W-1, ...]`, `spans i32[S, 2]`, `states i32[S]` to `[T, ...]`:
    the sum over a token and the W-1 before it, the oldest meeting the first tap. The state is the inputs of the last W-1 tokens. Rows
    of no sequence give zeros; spans and `shard` as in `attention`."""
    out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    dtype = compute_dtype(x.dtype)
    taps = w.squeeze(-2).to(dtype).movedim(-1, 0)
    for _, first, last, page in own_sequences(spans, states, len(x), shard):
        own = _state_of(state, page)
        seen = torch.cat((own.to(dtype), x[first:last].to(dtype)))
        made = sum(seen[i : i + last - first] * tap for i, tap in enumerate(taps))
        out[first:last] = made.to(x.dtype) if isinstance(made, Tensor) else made
        own.copy_(seen[last - first :])
    return out


@kernel("ts::short_conv", name="torch", cost=recurrence_bound(state=2))
def short_conv_torch(x: Tensor, w: Tensor, state: Tensor, spans: Tensor, states: Tensor, shard: int, *, out: Tensor) -> None:
    """A pass over a sequence's rows for each tap."""
    taps = w.squeeze(-2).to(state.dtype).movedim(-1, 0)
    sequences = own_sequences(spans, states, len(x), shard)
    clear_unclaimed(out, sequences)
    for _, first, last, page in sequences:
        own = _state_of(state, page)
        seen = torch.cat((own, x[first:last].to(own.dtype)))
        made = seen[: last - first] * taps[0]
        for i, tap in enumerate(taps[1:], start=1):
            made.addcmul_(seen[i : i + last - first], tap)
        out[first:last] = made
        own.copy_(seen[last - first :])


@op("ts::decay")
def decay(x: Tensor, rate: Tensor, bias: Tensor) -> Tensor:
    """`x [T, ...]`, `rate`, `bias f32[...]` to `f32[T, ...]`: `exp(-exp(rate) * softplus(x + bias))`, what a state keeps in a step."""
    dtype = compute_dtype(rate.dtype)
    wide = x.to(dtype) + bias.to(dtype)
    return torch.exp(-rate.to(dtype).exp() * torch.nn.functional.softplus(wide)).to(rate.dtype)


@kernel("ts::decay", name="torch", target=ANY, cost=composed(5))
def decay_torch(x: Tensor, rate: Tensor, bias: Tensor, *, out: Tensor) -> None:
    """In `out`, pass after pass."""
    torch.add(x, bias, out=out)
    torch.ops.aten.softplus.out(out, out=out)
    out.mul_(rate.exp().neg_()).exp_()


@op("ts::gated_delta", cost=recurrence_bound(state=5), writes="state")
def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    spans: Tensor,
    states: Tensor,
    shard: int,
    scale: float,
    eps: float,
) -> Tensor:
    """`q`, `k [T, K, A]`, `v [T, K, G, E]`, `decay f32[T, K, G]`, `beta [T, K, G]`, `state f32[pages, K, G, A, E]` to `[T, K, G, E]`.

    With queries and keys of length one (`eps` is added to the squared length), and queries times `scale`, a head's matrix M becomes
    `decay * M`, is corrected by `k` times `beta * (v - k M)`, and gives `q M`. Rows of no sequence give zeros; spans and `shard` as in
    `attention`."""
    out = torch.zeros(v.shape, dtype=v.dtype, device=v.device)
    dtype = compute_dtype(q.dtype)
    for _, first, last, page in own_sequences(spans, states, len(q), shard):
        own = _state_of(state, page)
        matrix = own.to(dtype)
        queries, keys = (_of_length_one(x[first:last].to(dtype), eps) for x in (q, k))
        for row in range(first, last):
            query, key = queries[row - first, :, None, :, None] * scale, keys[row - first, :, None, :, None]
            matrix = matrix * decay[row, ..., None, None].to(dtype)
            change = (v[row].to(dtype) - (matrix * key).sum(-2)) * beta[row, ..., None].to(dtype)
            matrix = matrix + key * change[..., None, :]
            out[row] = (matrix * query).sum(-2).to(v.dtype)
        own.copy_(matrix)
    return out


@kernel("ts::gated_delta", name="torch", cost=recurrence_bound(state=5))
def gated_delta_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    spans: Tensor,
    states: Tensor,
    shard: int,
    scale: float,
    eps: float,
    *,
    out: Tensor,
) -> None:
    """Three products a token, of all heads at once, with the states in their place."""
    sequences = own_sequences(spans, states, len(q), shard)
    clear_unclaimed(out, sequences)
    group, dtype = v.shape[2], state.dtype
    for _, first, last, page in sequences:
        matrices = _state_of(state, page).flatten(0, 1)
        queries, keys = (_of_length_one(x[first:last].to(dtype), eps).repeat_interleave(group, 1)[:, :, None] for x in (q, k))
        values, kept, gain = (x[first:last].flatten(1, 2).to(dtype) for x in (v, decay, beta))
        made = torch.empty_like(values)
        for row in range(last - first):
            matrices.mul_(kept[row, :, None, None])
            change = (values[row, :, None] - torch.bmm(keys[row], matrices)).mul_(gain[row, :, None, None])
            matrices.baddbmm_(keys[row].mT, change)
            made[row] = torch.bmm(queries[row], matrices)[:, 0].mul_(scale)
        out[first:last] = made.view(last - first, *v.shape[1:])


def _of_length_one(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
