"""Latent attention decode in CUDA C++, compiled by nvcc for Hopper and Blackwell, is right in the emulator, without a fault."""

from __future__ import annotations

import shutil

import pytest
from tests.gpu.latent_cuda import DECODES, ptx_of, run
from tests.gpu.mutations import OPERATORS, mutants

from tskernels.emulator import EmulatorFault

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]
FAULTS = (
    *("wait dropped", "wait for the other parity", "arrival dropped", "proxy fence dropped"),
    *("store to shared memory dropped", "store to the next place"),
)


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


@pytest.mark.parametrize("name", [name for name, decode in DECODES.items() if decode.is_fp8])
def test_faults_planted_where_fp8_is_widened_are_found(name: str) -> None:
    """In the first and in the last place of each kind; five tiles, so that both stages are used again."""
    decode, ptx = DECODES[name], ptx_of(name)
    widening = [number for number, line in enumerate(ptx.split("\n"), 1) if "e4m3x2" in line]
    begin, end = widening[0] - 30, widening[-1] + 40  # with the barriers before and after
    missed, found = [], 0
    for operator in (operator for operator in OPERATORS if operator.name in FAULTS):
        places = [m for m in mutants(ptx, [operator]) if begin <= m.line <= end]
        for mutant in {places[0].line: places[0], places[-1].line: places[-1]}.values():
            found += 1
            try:
                error, of_logarithms, _ = run(decode, mutant.text, 16, (310,), (1,), 64, blocks=1)
                if error < 3e-3 and of_logarithms < 2e-5:
                    missed.append((mutant.operator, mutant.line))
            except (EmulatorFault, AssertionError):
                pass
    assert not missed
    assert found >= 8
