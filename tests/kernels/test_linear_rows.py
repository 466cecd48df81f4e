"""A token's bits must not depend on how many tokens share its step."""

from __future__ import annotations

import pytest
import torch

from tskernels.registry import lookup

SHAPES = ((576, 1536), (1536, 576), (640, 4096), (64, 192), (2048, 640))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_row_has_the_same_bits_in_any_batch(inner: int, outer: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(300, inner, generator=generator).to(dtype)
    w = torch.randn(outer, inner, generator=generator).to(dtype)
    linear = lookup("ts::linear", "torch").function
    whole = torch.empty(300, outer, dtype=dtype)
    linear(x, w, out=whole)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 33, 128, 299):
        part = torch.empty(rows, outer, dtype=dtype)
        linear(x[:rows], w, out=part)
        assert torch.equal(part, whole[:rows]), f"{rows} rows"
