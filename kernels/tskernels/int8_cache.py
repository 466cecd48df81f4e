"""A cache of keys and values in bytes, the layout `int8_cache`: u8[pages, page_size, 2 * K * (E + 4)].

A page has the codes of its rows, i8[page_size, 2, K, E], and then the scales, f32[2, K, page_size]. A vector, the key or the value of one
token and head, is its codes times its scale. They follow from it alone, whoever writes it, to the bit: the scale is the largest magnitude
over 127, the codes are the elements over the scale, to the nearest, ties to even.

T tokens in the step; K key heads with G query heads each; E elements a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tskernels.attention import attention_torch, clear_unclaimed, oldest_key, own_sequences, sink_attention_torch
from tskernels.cache_layouts import INT8_CACHE
from tskernels.cost import append_bound, attention_bound, sink_attention_bound
from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, one_float_type

LARGEST_CODE = 127


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors `x [..., E]` to codes i8[..., E] and scales f32[...]. A vector with an element that is not finite has the scale NaN and no
    codes; one whose scale would be less than the smallest normal f32 has zeros."""
    x = x.float()
    scales = x.abs().amax(-1) / LARGEST_CODE
    broken = ~x.isfinite().all(-1)
    is_normal = ~broken & (scales >= torch.finfo(torch.float32).tiny)
    quotients = x / torch.where(is_normal, scales, 1)[..., None]
    codes = torch.where(is_normal[..., None], quotients.round(), 0).to(torch.int8)
    return codes, scales.masked_fill(~is_normal, 0).masked_fill(broken, torch.nan)


def parts(cache: Tensor, heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Views of pages: codes i8[pages, page_size, 2, K, E] and scales f32[pages, 2, K, page_size]."""
    pages, page_size = cache.shape[:2]
    flat, num_codes = cache.view(pages, -1), page_size * 2 * heads * width
    codes, scales = flat[:, :num_codes].view(torch.int8), flat[:, num_codes:].view(torch.float32)
    return codes.view(pages, page_size, 2, heads, width), scales.view(pages, 2, heads, page_size)


def dequantize(cache: Tensor, heads: int, width: int, dtype: torch.dtype) -> Tensor:
    """Pages as rows `[pages, page_size, 2, K, E]` of `dtype`."""
    codes, scales = parts(cache, heads, width)
    return codes.to(dtype) * scales.permute(0, 3, 1, 2)[..., None].to(dtype)


@kernel("ts::cache_append", name="torch_int8", when=one_float_type, cost=append_bound, layouts={0: INT8_CACHE})
def cache_append_int8(cache: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
    """As to a cache in rows, but for how a vector is stored."""
    codes, scales = parts(cache, *k.shape[1:])
    pages, rows = slots.long() // cache.shape[1], slots.long() % cache.shape[1]
    for index, new in enumerate((k, v)):
        codes[pages, rows, index], scales[pages, index, :, rows] = quantize(new)
    return cache


@kernel("ts::attention", name="torch_int8", when=one_float_type, cost=attention_bound, layouts={1: INT8_CACHE})
def attention_int8(
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
    """The pages that a sequence sees are dequantized, and attended to as rows; in f32, rounded once."""
    for rows, queries, alone, result in _alone(q, cache, spans, lengths, tables, shard, window, out):
        attention_torch(queries, rows, *alone, 0, scale, window, softcap, out=result)


@kernel("ts::sink_attention", name="torch_int8", when=one_float_type, cost=sink_attention_bound, layouts={1: INT8_CACHE})
def sink_attention_int8(
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
    """As `attention`."""
    for rows, queries, alone, result in _alone(q, cache, spans, lengths, tables, shard, window, out):
        sink_attention_torch(queries, rows, sinks, *alone, 0, scale, window, softcap, out=result)


Alone = tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], Tensor]
"""Pages as rows, queries, spans with lengths and tables, and where the result goes."""


def _alone(
    q: Tensor, cache: Tensor, spans: Tensor, lengths: Tensor, tables: Tensor, shard: int, window: int, out: Tensor
) -> Iterator[Alone]:
    """Each sequence by itself, as if it began with the first page that it sees; its result is rounded when the next is asked for."""
    page_size, dtype = cache.shape[1], compute_dtype(q.dtype)
    sequences = own_sequences(spans, lengths, len(q), shard)
    clear_unclaimed(out, sequences)
    for sequence, first, last, length in sequences:
        page = oldest_key(last - first, length, window) // page_size
        seen = cache.index_select(0, tables[sequence, page : -(-length // page_size)])
        rows = dequantize(seen, q.shape[1], q.shape[3], dtype)
        alone = torch.tensor([[0, last - first]]), torch.tensor([length - page * page_size]), torch.arange(len(rows))[None]
        result = torch.empty_like(q[first:last], dtype=dtype, memory_format=torch.contiguous_format)
        yield rows, q[first:last].to(dtype), alone, result
        out[first:last] = result
