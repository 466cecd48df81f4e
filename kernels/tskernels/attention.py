"""Causal attention over a paged cache.

T tokens of S sequences in the step; K key heads with G query heads each; E elements a head; P pages a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tskernels.cost import attention_bound, sink_attention_bound
from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, one_float_type, op


@op("ts::attention", cost=attention_bound)
def attention(
    q: Tensor, cache: Tensor, spans: Tensor, lengths: Tensor, tables: Tensor, shard: int, scale: float, window: int, softcap: float
) -> Tensor:
    """`q [T, K, G, E]`, `cache [pages, page_size, 2, K, E]`, `spans i32[S, 2]`, `lengths i32[S]`, `tables i32[S, P]` to
    `[T, K, G, E]`. Rows `spans[s, 0]` to before `spans[s, 1]` are sequence s's, its newest; an empty span is not looked at. Rows of no
    sequence give zeros. Where ranks share out the step's rows by sequences, `shard` is which T of them are here; spans are of the step."""
    return _attended(q, cache, None, spans, lengths, tables, shard, scale, window, softcap)


@op("ts::sink_attention", cost=sink_attention_bound)
def sink_attention(
    q: Tensor,
    cache: Tensor,
    sinks: Tensor,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """As `attention`, but that each head may attend to nothing: to the scores of its softmax `sinks [K, G]` adds one of its own, which has
    no value and no cap."""
    return _attended(q, cache, sinks, spans, lengths, tables, shard, scale, window, softcap)


def _attended(
    q: Tensor,
    cache: Tensor,
    sinks: Tensor | None,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dtype = compute_dtype(q.dtype)
    for sequence, first, last, length in own_sequences(spans, lengths, len(q), shard):
        begin = oldest_key(last - first, length, window) // cache.shape[1] * cache.shape[1]
        pages = tables[sequence, begin // cache.shape[1] : -(-length // cache.shape[1])]
        keys, values = cache[pages].flatten(0, 1)[: length - begin].to(dtype).unbind(1)
        scores = torch.einsum("ikge,jke->kgij", q[first:last].to(dtype), keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(length - (last - first), length, device=q.device)[:, None] - torch.arange(begin, length, device=q.device)
        seen = distance >= 0
        if window:
            seen &= distance < window
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.to(dtype)[..., None, None].expand(*scores.shape[:-1], 1)), -1)
        weights = scores.softmax(-1)[..., : distance.shape[1]]
        out[first:last] = torch.einsum("kgij,jke->ikge", weights, values)
    return out


Own = tuple[int, int, int, int]
"""A sequence's number, its first row here, the row after its last, and its length."""


def own_sequences(spans: Tensor, lengths: Tensor, rows: int, shard: int) -> list[Own]:
    """The sequences with rows among this rank's, which are the step's from `shard * rows` on."""
    begin, end = shard * rows, (shard + 1) * rows
    found = []
    for sequence, ((first, last), length) in enumerate(zip(spans.tolist(), lengths.tolist(), strict=True)):
        if (own := max(first, begin)) < (past := min(last, end)):
            found.append((sequence, own - begin, past - begin, length))
    return found


def oldest_key(num_new: int, length: int, window: int) -> int:
    """The position that the first of a sequence's new tokens sees back to. Pages wholly before it are another sequence's by now."""
    return max(0, length - num_new - window + 1) if window else 0


def clear_unclaimed(out: Tensor, sequences: Sequence[Own]) -> None:
    """Zeros in `out` where it has rows of no sequence: those that pad a step."""
    if sum(last - first for _, first, last, _ in sequences) < len(out):
        out.zero_()


@kernel("ts::attention", name="torch", when=one_float_type, cost=attention_bound)
def attention_torch(
    q: Tensor,
    cache: Tensor,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
    *,
    out: Tensor,
) -> None:
    """One call of torch's fused attention a sequence, so that a sequence's bits are the same in any company.

    Several sequences in one call would be faster and are not the same: torch gives each thread its own scratch memory, whose
    alignment, and so the order of its sums, differs by thread, and which thread gets a sequence depends on the others.
    """
    _attend(q, cache, None, spans, lengths, tables, shard, scale, window, softcap, out)


@kernel("ts::sink_attention", name="torch", when=one_float_type, cost=sink_attention_bound)
def sink_attention_torch(
    q: Tensor,
    cache: Tensor,
    sinks: Tensor,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
    *,
    out: Tensor,
) -> None:
    """A product a sequence, in f32: torch's fused attention has no sinks."""
    _attend(q, cache, sinks, spans, lengths, tables, shard, scale, window, softcap, out)


def _attend(
    q: Tensor,
    cache: Tensor,
    sinks: Tensor | None,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    softcap: float,
    out: Tensor,
) -> None:
    page_size = cache.shape[1]
    sequences = own_sequences(spans, lengths, len(q), shard)
    clear_unclaimed(out, sequences)
    for sequence, first, last, length in sequences:
        num_new = last - first
        oldest = oldest_key(num_new, length, window)
        page = oldest // page_size
        gathered = cache.index_select(0, tables[sequence, page : -(-length // page_size)])
        keys, values = gathered.flatten(0, 1)[oldest - page * page_size : length - page * page_size].unbind(1)
        # A copy, since the alignment of a row in the middle of q depends on what stands before it.
        queries = q[first:last].clone(memory_format=torch.contiguous_format)
        if softcap or sinks is not None:
            result = _plain(queries, keys, values, sinks, scale, window, softcap)
        elif num_new == length and not oldest and (not window or window >= length):
            result = _whole(queries, keys, values, scale)
        else:
            result = _grouped(queries, keys, values, scale, window)
        out[first:last] = result


def _seen(queries: Tensor, num_keys: int, window: int) -> Tensor | None:
    """bool[N*G, J]: which of the J newest keys each row of N new tokens times G heads sees; None when all see all."""
    num_new, group = queries.shape[0], queries.shape[2]
    if num_new == 1:
        return None  # the keys were cut to what this one sees
    distance = torch.arange(num_keys - num_new, num_keys)[:, None] - torch.arange(num_keys)
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    return seen.repeat_interleave(group, 0)


def _rows(queries: Tensor) -> Tensor:
    """`[N, K, G, E]` to `[K, N*G, E]`: query heads of a key head become rows of one product, so that keys are not repeated."""
    N, K, G, E = queries.shape
    return queries.transpose(0, 1).reshape(K, N * G, E)


def _grouped(queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int) -> Tensor:
    """`queries [N, K, G, E]`, `keys`, `values [J, K, E]` to `[N, K, G, E]`."""
    N, K, G, E = queries.shape
    mask = _seen(queries, keys.shape[0], window)
    rows, keys, values = _rows(queries)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    result = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return result.view(K, N, G, E).transpose(0, 1)


def _whole(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """A whole prompt: keys are repeated for each head, but half of the products are never made."""
    heads, keys, values = queries.flatten(1, 2).transpose(0, 1)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    result = scaled_dot_product_attention(heads, keys, values, is_causal=True, scale=scale, enable_gqa=True)
    return result[0].transpose(0, 1).reshape(queries.shape)


def _plain(queries: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, scale: float, window: int, softcap: float) -> Tensor:
    """With capped scores or sinks, which torch has no fused form of; in f32."""
    dtype = compute_dtype(queries.dtype)
    N, K, G, E = queries.shape
    scores = torch.bmm(_rows(queries).to(dtype), keys.permute(1, 2, 0).to(dtype)).mul_(scale)
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    seen = _seen(queries, keys.shape[0], window)
    if seen is not None:
        scores.masked_fill_(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(dtype).repeat(1, N)[..., None]), -1)
    weights = scores.softmax(-1)[..., : keys.shape[0]]
    result = torch.bmm(weights, values.transpose(0, 1).to(dtype))
    return result.view(K, N, G, E).transpose(0, 1)
