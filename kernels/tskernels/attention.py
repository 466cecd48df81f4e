"""Causal attention over a paged cache.

T tokens of S sequences in the step; K key heads with G query heads each; E elements a head; P pages a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tskernels.cost import attention_bound
from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, one_float_type, op


@op("ts::attention", cost=attention_bound)
def attention(
    q: Tensor, cache: Tensor, starts: Tensor, lengths: Tensor, tables: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """`q [T, K, G, E]`, `cache [pages, page_size, 2, K, E]`, `starts i32[S+1]`, `lengths i32[S]`, `tables i32[S, P]` to
    `[T, K, G, E]`. Query i of sequence s has position `lengths[s] - (starts[s+1] - starts[s]) + i`."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    bounds = starts.tolist()
    dtype = compute_dtype(q.dtype)
    for sequence, length in enumerate(lengths.tolist()):
        first, last = bounds[sequence], bounds[sequence + 1]
        if first == last:
            continue
        pages = tables[sequence, : -(-length // cache.shape[1])]
        keys, values = cache[pages].flatten(0, 1)[:length].to(dtype).unbind(1)
        scores = torch.einsum("ikge,jke->kgij", q[first:last].to(dtype), keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(length - (last - first), length)[:, None] - torch.arange(length)
        seen = distance >= 0
        if window:
            seen &= distance < window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[first:last] = torch.einsum("kgij,jke->ikge", weights, values)
    return out


@kernel("ts::attention", name="torch", when=one_float_type, cost=attention_bound)
def attention_torch(
    q: Tensor, cache: Tensor, starts: Tensor, lengths: Tensor, tables: Tensor, scale: float, window: int, softcap: float, *, out: Tensor
) -> None:
    """Sequences with equally many new tokens and pages in sight share one call.

    A sequence's bits depend on nothing but itself: keys are padded to whole pages whoever else is in the step, and heads of a
    batch are computed apart. That holds for f32 and f64; with reduced types torch packs keys depending on the batch, and
    bmm (softcap) picks its method by it, so there each sequence goes alone.
    """
    together = q.dtype in (torch.float32, torch.float64) and not softcap
    for group in _groups(starts.tolist(), lengths.tolist(), cache.shape[1], window, together):
        keys, values = _gather(group, cache, tables).unbind(2)
        rows = group.rows()
        queries = q[rows].view(-1, group.num_new, *q.shape[1:])  # [B, N, K, G, E]
        if softcap:
            result = _capped(queries, keys, values, _seen(group, keys.shape[1], window), scale, softcap)
        elif group.is_whole_prompt(window):
            result = _causal(queries, keys[:, : group.num_new], values[:, : group.num_new], scale)
        else:
            result = _grouped(queries, keys, values, _seen(group, keys.shape[1], window), scale)
        out[rows] = result.flatten(0, 1)


class _Group:
    """Sequences of a step that share every size: B of them, N new tokens and J keys each."""

    __slots__ = ("firsts", "lengths", "num_new", "num_pages", "pages", "sequences")

    def __init__(self, num_new: int, num_pages: int) -> None:
        self.num_new, self.num_pages = num_new, num_pages
        self.sequences: list[int] = []
        self.firsts: list[int] = []  # row of q
        self.lengths: list[int] = []  # keys up to the newest, counted from the first page read
        self.pages: list[int] = []  # first page read

    def rows(self) -> slice | Tensor:
        """Rows of q: a slice, and so a view, where the sequences lie side by side."""
        first, count = self.firsts[0], len(self.firsts) * self.num_new
        if self.firsts == list(range(first, first + count, self.num_new)):
            return slice(first, first + count)
        return (torch.tensor(self.firsts)[:, None] + torch.arange(self.num_new)).view(-1)

    def is_whole_prompt(self, window: int) -> bool:
        """Nothing came before the new tokens, and no window hides any of them."""
        return self.num_new > 1 and (not window or window >= self.num_new) and all(length == self.num_new for length in self.lengths)


def _groups(bounds: list[int], lengths: list[int], page_size: int, window: int, together: bool) -> list[_Group]:
    groups: dict[tuple[int, int, int], _Group] = {}
    for sequence, length in enumerate(lengths):
        num_new = bounds[sequence + 1] - bounds[sequence]
        if not num_new:
            continue
        # The oldest key that the first query sees; pages wholly before it are not read.
        page = max(0, length - num_new - window + 1) // page_size if window else 0
        num_pages = -(-length // page_size) - page
        # Whole prompts stay apart from chunks of equal size: they are computed another way.
        kind = int(length == num_new) if together else 2 + sequence
        group = groups.setdefault((num_new, num_pages, kind), _Group(num_new, num_pages))
        group.sequences.append(sequence)
        group.firsts.append(bounds[sequence])
        group.lengths.append(length - page * page_size)
        group.pages.append(page)
    return list(groups.values())


def _gather(group: _Group, cache: Tensor, tables: Tensor) -> Tensor:
    """Keys and values `[B, J, 2, K, E]`, J whole pages; rows past a sequence's end are zeros, as what lies there may be NaN."""
    count = group.num_pages
    if len(group.sequences) == 1:
        pages = tables[group.sequences[0], group.pages[0] : group.pages[0] + count]
    else:
        columns = torch.tensor(group.pages)[:, None] + torch.arange(count)
        pages = tables[torch.tensor(group.sequences)[:, None], columns].view(-1)
    gathered = cache.index_select(0, pages).view(len(group.sequences), -1, *cache.shape[2:])
    for block, length in zip(gathered, group.lengths, strict=True):
        if length < gathered.shape[1]:
            block[length:].zero_()
    return gathered


def _seen(group: _Group, num_keys: int, window: int) -> Tensor:
    """bool[B, 1, N, 1, J]: which keys each query sees."""
    newest = torch.tensor(group.lengths)[:, None, None, None, None] - 1
    positions = newest - torch.arange(group.num_new - 1, -1, -1)[:, None, None]
    distance = positions - torch.arange(num_keys)
    return (distance >= 0) & (distance < window) if window else distance >= 0


def _grouped(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Query heads of a key head are further rows of one query, so that keys are not repeated."""
    B, N, K, G, E = queries.shape
    rows = queries.transpose(1, 2).reshape(B, K, N * G, E)
    mask = seen.expand(B, 1, N, G, seen.shape[-1]).reshape(B, 1, N * G, -1)
    result = scaled_dot_product_attention(rows, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scale)
    return result.view(B, K, N, G, E).transpose(1, 2)


def _causal(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """A whole prompt: keys are repeated for each head, but half of the products are never made."""
    heads = queries.flatten(2, 3).transpose(1, 2)
    result = scaled_dot_product_attention(heads, keys.transpose(1, 2), values.transpose(1, 2), is_causal=True, scale=scale, enable_gqa=True)
    return result.transpose(1, 2).reshape(queries.shape)


def _capped(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, softcap: float) -> Tensor:
    """One sequence (B is 1) with capped scores, which torch has no fused form of."""
    dtype = compute_dtype(queries.dtype)
    _, N, K, G, E = queries.shape
    rows = queries[0].transpose(0, 1).reshape(K, N * G, E).to(dtype)
    scores = torch.bmm(rows, keys[0].permute(1, 2, 0).to(dtype)).mul_(scale / softcap).tanh_().mul_(softcap)
    hidden = ~seen.expand(1, 1, N, G, seen.shape[-1]).reshape(1, N * G, -1)
    weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)
    result = torch.bmm(weights, values[0].transpose(0, 1).to(dtype))
    return result.view(1, K, N, G, E).transpose(1, 2).to(queries.dtype)
