"""Causal attention over a paged cache of latent rows (MLA): absorbed, where one row a token, `[C + R]`, is key and value of every head, and
expanded, where each head has keys and values of its own that are made of the rows.

T tokens of S sequences in the step; H heads; C latent and R rotated elements a token; A content of a head's queries, E of its values; P
pages a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tskernels.attention import Own, clear_unclaimed, oldest_key, own_sequences
from tskernels.cost import append_bound, composed, expanded_attention_bound, latent_attention_bound
from tskernels.dtypes import compute_dtype
from tskernels.expansion import expanded
from tskernels.registry import inplace_op, kernel, op
from tskernels.target import ANY


@inplace_op("ts::latent_append", cost=append_bound)
def latent_append(cache: Tensor, latent: Tensor, rotated: Tensor, slots: Tensor) -> Tensor:
    """`cache [pages, page_size, C+R]`: write `latent [T, C]` and `rotated [T, R]`, side by side, at row `slot % page_size` of page
    `slot // page_size` of `slots i32[T]`; returns `cache`."""
    cache[slots // cache.shape[1], slots % cache.shape[1]] = torch.cat((latent, rotated), -1)
    return cache


@kernel("ts::latent_append", name="torch", target=ANY, cost=composed(3, append_bound))
def latent_append_torch(cache: Tensor, latent: Tensor, rotated: Tensor, slots: Tensor) -> Tensor:
    """A slot is a row of the cache with pages and rows as one dimension."""
    rows = cache.view(-1, cache.shape[-1])
    index = slots.long()
    rows[:, : latent.shape[1]].index_copy_(0, index, latent)
    rows[:, latent.shape[1] :].index_copy_(0, index, rotated)
    return cache


@op("ts::latent_attention", cost=latent_attention_bound)
def latent_attention(
    q: Tensor,
    rotated: Tensor,
    cache: Tensor,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    expanded_from: int = 0,
) -> Tensor:
    """`q [T, H, C]`, `rotated [T, H, R]`, `cache [pages, page_size, C+R]`, `spans i32[S, 2]`, `lengths i32[S]`, `tables i32[S, P]` to
    `[T, H, C]`. A head's score of a row is its product with the whole row, its value the row's first C. Spans and
    `shard` as in `attention`. Rows of sequences that are expanded (`expansion.py`) are zeros: `expanded_attention` has them."""
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    dtype = compute_dtype(q.dtype)
    whole = torch.cat((q, rotated), -1).to(dtype)
    sequences = absorbed_sequences(spans, lengths, len(q), shard, expanded_from)
    for first, last, rows, seen in _rows(sequences, cache, tables, window):
        scores = torch.einsum("ihw,jw->hij", whole[first:last], rows.to(dtype)) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[first:last] = torch.einsum("hij,jc->ihc", weights, rows[:, : q.shape[2]].to(dtype)).to(q.dtype)
    return out


@inplace_op("ts::expanded_attention", cost=expanded_attention_bound)
def expanded_attention(
    few: Tensor,
    content: Tensor,
    rotated: Tensor,
    cache: Tensor,
    k_up: Tensor,
    v_up: Tensor,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    expanded_from: int,
) -> Tensor:
    """`few [T, H, E]`, `content [T, H, A]`, `rotated [T, H, R]`, `cache [pages, page_size, C+R]`, `k_up [H, A, C]`, `v_up [H, E, C]`:
    write into `few` the rows of the sequences that are expanded (`expansion.py`), and leave the others; returns `few`. A head's key is
    `k_up` times a row's first C beside the row's R, its value `v_up` times the first C. Spans and `shard` as in `attention`."""
    dtype = compute_dtype(few.dtype)
    latent = k_up.shape[2]
    sequences = own_sequences(spans, lengths, len(few), shard)
    chosen = expanded([(first, last) for _, first, last, _ in sequences], [length for *_, length in sequences], expanded_from)
    some = [sequence for sequence, is_expanded in zip(sequences, chosen, strict=True) if is_expanded]
    for first, last, rows, seen in _rows(some, cache, tables, 0):
        rows = rows.to(dtype)
        keys = torch.einsum("jc,hac->hja", rows[:, :latent], k_up.to(dtype))
        values = torch.einsum("jc,hec->hje", rows[:, :latent], v_up.to(dtype))
        scores = torch.einsum("iha,hja->hij", content[first:last].to(dtype), keys)
        scores += torch.einsum("ihr,jr->hij", rotated[first:last].to(dtype), rows[:, latent:])
        weights = (scores * scale).masked_fill(~seen, -torch.inf).softmax(-1)
        few[first:last] = torch.einsum("hij,hje->ihe", weights, values).to(few.dtype)
    return few


def absorbed_sequences(spans: Tensor, lengths: Tensor, rows: int, shard: int, expanded_from: int) -> list[Own]:
    """This rank's sequences but for those that are expanded."""
    own = own_sequences(spans, lengths, rows, shard)
    chosen = expanded([(first, last) for _, first, last, _ in own], [length for *_, length in own], expanded_from)
    return [sequence for sequence, is_expanded in zip(own, chosen, strict=True) if not is_expanded]


def _rows(sequences: Sequence[Own], cache: Tensor, tables: Tensor, window: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Of each sequence: the bounds of its new tokens, its rows [J, W] from the first page on that the window reaches, and which of them
    each new token sees, bool[N, J]."""
    for sequence, first, last, length in sequences:
        begin = oldest_key(last - first, length, window) // cache.shape[1] * cache.shape[1]
        pages = tables[sequence, begin // cache.shape[1] : -(-length // cache.shape[1])]
        rows = cache.index_select(0, pages).flatten(0, 1)[: length - begin]
        distance = torch.arange(length - (last - first), length)[:, None] - torch.arange(begin, length)
        distance = distance.to(cache.device)
        seen = distance >= 0
        if window:
            seen &= distance < window
        yield first, last, rows, seen


@kernel("ts::latent_attention", name="torch", cost=latent_attention_bound)
def latent_attention_torch(
    q: Tensor,
    rotated: Tensor,
    cache: Tensor,
    spans: Tensor,
    lengths: Tensor,
    tables: Tensor,
    shard: int,
    scale: float,
    window: int,
    expanded_from: int = 0,
    *,
    out: Tensor,
) -> None:
    """Two products a sequence with all heads as rows: the latent rows are read once for all of them. Softmax in f32."""
    sequences = absorbed_sequences(spans, lengths, len(q), shard, expanded_from)
    clear_unclaimed(out, sequences)
    heads, width = q.shape[1:]
    whole = torch.cat((q, rotated), -1)
    for first, last, rows, seen in _rows(sequences, cache, tables, window):
        queries = whole[first:last].flatten(0, 1)
        scores = torch.mm(queries, rows.t()).to(compute_dtype(q.dtype)).mul_(scale).view(last - first, heads, -1)
        weights = scores.masked_fill_(~seen[:, None], -torch.inf).softmax(-1).to(q.dtype)
        out[first:last] = torch.mm(weights.flatten(0, 1), rows[:, :width]).view(last - first, heads, width)
