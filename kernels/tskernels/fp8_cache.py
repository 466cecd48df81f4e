"""A cache in fp8, the layout `fp8_cache`: as its rows, each element in a byte, f8e4m3.

An element is what is appended, rounded to e4m3 (a sign, 4 bits of exponent, 3 of mantissa; no infinities) to the nearest, ties to even.
What is larger than 448 in magnitude, infinities too, becomes 448; NaN stays NaN. There is no scale: an element stands for itself, 2^-9 to
448, to 1/16 of its size from 2^-6 on. So a vector is the same whoever writes it, a kernel widens bytes and multiplies as ever, and the
tensor cores of fp8 may take them as they are. Each e4m3 is a bf16, an f16 and an f32: what attention reads is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.attention import attention_torch, sink_attention_torch
from tskernels.cache import cache_append_torch
from tskernels.cache_layouts import FP8_CACHE
from tskernels.cost import append_bound, attention_bound, composed, latent_attention_bound, sink_attention_bound
from tskernels.expansion import all_absorbed
from tskernels.latent_attention import latent_append_torch, latent_attention_torch
from tskernels.registry import kernel, one_float_type
from tskernels.seen_pages import each_alone
from tskernels.target import ANY

LARGEST: float = 448.0


def narrow(x: Tensor) -> Tensor:
    """Floats to f8e4m3."""
    return x.float().clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def _bytes(cache: Tensor) -> Tensor:
    # torch moves no fp8.
    return cache.view(torch.uint8)


@kernel("ts::cache_append", name="torch_fp8", target=ANY, cost=composed(9, append_bound), layouts={0: FP8_CACHE})
def cache_append_fp8(cache: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> Tensor:
    """As to a cache in rows, of what is rounded."""
    cache_append_torch(_bytes(cache), _bytes(narrow(k)), _bytes(narrow(v)), slots)
    return cache


@kernel("ts::latent_append", name="torch_fp8", target=ANY, cost=composed(9, append_bound), layouts={0: FP8_CACHE})
def latent_append_fp8(cache: Tensor, latent: Tensor, rotated: Tensor, slots: Tensor) -> Tensor:
    """As to a cache in rows, of what is rounded."""
    latent_append_torch(_bytes(cache), _bytes(narrow(latent)), _bytes(narrow(rotated)), slots)
    return cache


@kernel("ts::attention", name="torch_fp8", when=one_float_type, cost=attention_bound, layouts={1: FP8_CACHE})
def attention_fp8(
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
    """The pages that a sequence sees are widened, and attended to as rows; in f32, rounded once."""
    for own, pages, step, result in each_alone(cache, spans, lengths, tables, shard, window, out):
        attention_torch(q[own].to(result.dtype), pages.to(result.dtype), *step, 0, scale, window, softcap, out=result)


@kernel("ts::sink_attention", name="torch_fp8", when=one_float_type, cost=sink_attention_bound, layouts={1: FP8_CACHE})
def sink_attention_fp8(
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
        sink_attention_torch(q[own].to(result.dtype), pages.to(result.dtype), sinks, *step, 0, scale, window, softcap, out=result)


@kernel("ts::latent_attention", name="torch_fp8", when=all_absorbed, cost=latent_attention_bound, layouts={2: FP8_CACHE})
def latent_attention_fp8(
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
    """As `attention`; all are absorbed."""
    for own, pages, step, result in each_alone(cache, spans, lengths, tables, shard, window, out):
        queries = q[own].to(result.dtype), rotated[own].to(result.dtype)
        latent_attention_torch(*queries, pages.to(result.dtype), *step, 0, scale, window, out=result)
