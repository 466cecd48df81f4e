"""Others' attention kernels for Hopper, to time beside ours: from shared libraries that a user brings.

They are in the wheels of vLLM, built for one version of torch (0.26.0: torch 2.11, CUDA 13):
`pip download --no-deps vllm==0.26.0 && unzip vllm-*.whl 'vllm/*_flashmla_C*' 'vllm/vllm_flash_attn/_vllm_fa3_C*'`. Each call gives a
function that launches, so that a graph can record it; what is planned on the host is planned before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def flash_mla(library: Path, q: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor, width: int, scale: float) -> Callable[[], Tensor]:
    """FlashMLA's dense decode, causal: [sequences, tokens, heads, width] of q [sequences, tokens, heads, row], a paged cache
    [pages, 64, row], tables [sequences, columns] and lengths [sequences] in i32; the first `width` of a row are its value."""
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    decode = torch.ops._flashmla_C.dense_decode_fwd
    pages = cache.unsqueeze(2)
    *_, plan, splits = decode(q, pages, width, lengths, tables, scale, True, None, None, None)

    def call() -> Tensor:
        out: Tensor = decode(q, pages, width, lengths, tables, scale, True, plan, splits, None)[0]
        return out

    return call


def flash_3(library: Path, q: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor, scale: float) -> Callable[[], Tensor]:
    """FlashAttention 3 over a paged cache, causal: [sequences, tokens, heads, width] of q of that shape, a cache [pages, page, 2,
    heads of keys, width] of keys and values, tables and lengths as above."""
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    count, tokens, heads, width = q.shape
    keys, values = cache.unbind(2)
    rows, out = q.reshape(count * tokens, heads, width), torch.empty_like(q).view(count * tokens, heads, width)
    starts = torch.arange(count + 1, dtype=torch.int32, device=q.device) * tokens
    most = int(lengths.max())
    plan = torch.ops._vllm_fa3_C.get_scheduler_metadata(
        *(count, tokens, most, heads, keys.shape[2], width, width, q.dtype, lengths, starts, None, None, None, None),
        *(keys.shape[1], 0, True, -1, -1, False, 0, None, 0),
    )

    def call() -> Tensor:
        torch.ops._vllm_fa3_C.fwd(
            *(rows, keys, values, None, None, None, out, starts, None, None, None, lengths, tokens, most, tables),
            *(None, None, None, None, None, None, None, None, scale, True, -1, -1, 0.0, True, plan),
            *(0, None, 0, None, 1, 0, None),
        )
        return out.view(count, tokens, heads, width)

    return call
