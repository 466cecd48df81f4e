"""Latent attention decode in CUDA C++, compiled by nvcc for Hopper and Blackwell, is right in the emulator, without a fault."""

from __future__ import annotations

import shutil

import pytest
from tests.gpu.mla_case import SHAPES, MlaCase, compiled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]


@pytest.fixture(scope="module", params=["90", "100"])
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Architecture and PTX."""
    return request.param, compiled(request.param, "ptx", tmp_path_factory.mktemp("ptx") / "kernel.ptx").read_text()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda value: str(value).replace(" ", ""))
def test_latent_decode_in_cuda(emulated: tuple[str, str], shape: tuple[int, tuple[int, ...], tuple[int, ...], int]) -> None:
    which, ptx = emulated
    case = MlaCase(which, *shape)
    out, logarithms, counters = case.emulated(ptx)
    assert case.check(out, logarithms) < 3e-3
    assert not counters.any()
