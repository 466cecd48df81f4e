"""Latent attention decode in CUDA C++, compiled by nvcc for Hopper and Blackwell, is right in the emulator, without a fault."""

from __future__ import annotations

import shutil

import pytest
from tests.gpu.latent_cuda import DECODES, ptx_of, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]


@pytest.mark.parametrize("name", DECODES)
@pytest.mark.parametrize(
    ("heads", "lengths", "queries", "page"),
    [
        (16, (1024, 37), (1, 1), 64),
        (16, (200,), (4,), 32),
        (32, (130, 300), (4, 4), 64),
        (128, (260,), (1,), 64),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_latent_decode_in_cuda(name: str, heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int) -> None:
    error, of_logarithms, _ = run(DECODES[name], ptx_of(name), heads, lengths, queries, page)
    assert error < 3e-3
    assert of_logarithms < 2e-5
