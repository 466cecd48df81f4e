"""Rows of a cache as the layout `int8_cache` stores them, by its definition in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.cache_layouts import CACHE_LAYOUTS, INT8_CACHE
from tskernels.int8_cache import parts, quantize


def empty_pages(pages: int, page_size: int, K: int, E: int) -> Tensor:
    """Pages that nothing was written to, as a runtime has them."""
    dtype, row = CACHE_LAYOUTS[INT8_CACHE].stored("f32", (2, K, E))
    assert dtype == "u8"
    return torch.zeros(pages, page_size, *row, dtype=torch.uint8)


def pages_of(cache: Tensor) -> Tensor:
    """Of `[pages, page_size, 2, K, E]`."""
    pages, page_size, _, K, E = cache.shape
    stored = empty_pages(pages, page_size, K, E)
    codes, scales = parts(stored, K, E)
    found = quantize(cache)
    codes.copy_(found[0])
    scales.copy_(found[1].permute(0, 2, 3, 1))
    return stored
