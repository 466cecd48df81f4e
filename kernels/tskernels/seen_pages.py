"""The sequences of a step one by one, with the pages that each sees: how torch attends to a cache that is not stored by rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tskernels.attention import clear_unclaimed, oldest_key, own_sequences
from tskernels.dtypes import compute_dtype

Step = tuple[Tensor, Tensor, Tensor]
"""Spans, lengths and tables."""
Alone = tuple[slice, Tensor, Step, Tensor]
"""A sequence's rows of the step, the pages that it sees as they are stored, a step of it alone with these, and where its result goes."""


def each_alone(cache: Tensor, spans: Tensor, lengths: Tensor, tables: Tensor, shard: int, window: int, out: Tensor) -> Iterator[Alone]:
    """Each sequence by itself, as if it began with the first page that it sees. Its result, in f32, is rounded after that."""
    page_size, dtype = cache.shape[1], compute_dtype(out.dtype)
    sequences = own_sequences(spans, lengths, len(out), shard)
    clear_unclaimed(out, sequences)
    for sequence, first, last, length in sequences:
        page = oldest_key(last - first, length, window) // page_size
        pages = cache.view(torch.uint8).index_select(0, tables[sequence, page : -(-length // page_size)]).view(cache.dtype)
        step = torch.tensor([[0, last - first]]), torch.tensor([length - page * page_size]), torch.arange(len(pages))[None]
        result = torch.empty_like(out[first:last], dtype=dtype, memory_format=torch.contiguous_format)
        yield slice(first, last), pages, step, result
        out[first:last] = result
