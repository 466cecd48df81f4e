"""A cache of keys and values in bytes, the layout `int8_cache`: u8[pages, page_size, 2 * K * (E + 4)].

A page has the codes of its rows, i8[page_size, 2, K, E], and then the scales, f32[2, K, page_size]. A vector, the key or the value of one
token and head, is its codes times its scale. They follow from it alone, whoever writes it, to the bit: the scale is the largest magnitude
over 127, the codes are the elements over the scale, to the nearest, ties to even.

T tokens in the step; K key heads with G query heads each; E elements a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.attention import attention_torch, sink_attention_torch
from tskernels.cache_layouts import INT8_CACHE
from tskernels.cost import append_bound, attention_bound, sink_attention_bound
from tskernels.registry import kernel, one_float_type
from tskernels.seen_pages import each_alone

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
    for own, pages, step, result in each_alone(cache, spans, lengths, tables, shard, window, out):
        rows = dequantize(pages, q.shape[1], q.shape[3], result.dtype)
        attention_torch(q[own].to(result.dtype), rows, *step, 0, scale, window, softcap, out=result)


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
    for own, pages, step, result in each_alone(cache, spans, lengths, tables, shard, window, out):
        rows = dequantize(pages, q.shape[1], q.shape[3], result.dtype)
        sink_attention_torch(q[own].to(result.dtype), rows, sinks, *step, 0, scale, window, softcap, out=result)
