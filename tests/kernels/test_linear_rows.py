"""A token's bits must not depend on how many tokens share its step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tskernels.layouts import PANELS, layout
from tskernels.registry import lookup
from tskernels.simd import SIMD_PANELS, is_available


def chosen(w: Tensor) -> tuple[Callable[..., None], Tensor]:
    """The kernel that a weight's matmuls get on this machine, and the weight as it takes it. Not torch's, where there is another: of its
    libraries one that keeps a row's bits on one processor does not on the next."""
    if not is_available():
        return lookup("ts::linear", "torch").function, w
    return lookup("ts::linear", SIMD_PANELS).function, layout(PANELS).pack(w)


SHAPES = ((576, 1536), (1536, 576), (640, 4096), (64, 192), (2048, 640))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_row_has_the_same_bits_in_any_batch(inner: int, outer: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(300, inner, generator=generator).to(dtype)
    w = torch.randn(outer, inner, generator=generator).to(dtype)
    linear, stored = chosen(w)
    whole = torch.empty(300, outer, dtype=dtype)
    linear(x, stored, out=whole)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 33, 128, 299):
        part = torch.empty(rows, outer, dtype=dtype)
        linear(x[:rows], stored, out=part)
        assert torch.equal(part, whole[:rows]), f"{rows} rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("equation", ["the,hec->thc", "the,hce->thc"])
def test_a_row_of_einsum_has_the_same_bits_in_any_batch(equation: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(150, 5, 192, generator=generator).to(dtype)
    w = torch.randn(5, *((192, 512) if equation.endswith("hec->thc") else (512, 192)), generator=generator).to(dtype)
    einsum = lookup("ts::einsum", "torch").function
    whole = torch.empty(150, 5, 512, dtype=dtype)
    einsum(x, w, equation, out=whole)
    for rows in (1, 2, 3, 4, 5, 8, 11, 12, 13, 33, 128, 149):
        part = torch.empty(rows, 5, 512, dtype=dtype)
        einsum(x[:rows], w, equation, out=part)
        assert torch.equal(part, whole[:rows]), f"{rows} rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_bits_with_any_others_at_its_experts(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    x, weights = torch.randn(100, 96, generator=generator).to(dtype), torch.rand(100, 4, generator=generator).to(dtype)
    gate, up = (torch.randn(4, 160, 96, generator=generator).to(dtype) for _ in range(2))
    down = torch.randn(4, 96, 160, generator=generator).to(dtype)
    experts = lookup("ts::experts", "torch").function
    whole = torch.empty(100, 96, dtype=dtype)
    experts(x, weights, gate, up, down, out=whole)
    for rows in (1, 2, 3, 4, 5, 8, 11, 12, 13, 33, 99):
        part = torch.empty(rows, 96, dtype=dtype)
        experts(x[:rows], weights[:rows], gate, up, down, out=part)
        assert torch.equal(part, whole[:rows]), f"{rows} rows"
