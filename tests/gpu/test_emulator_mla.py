"""Latent attention decode in CUDA C++, compiled by nvcc for Hopper and Blackwell, is right in the emulator, without a fault."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.gpu.kernels_of_test import Array, difference, from_bf16, from_fp8, normal, to_bf16, to_fp8
from tests.gpu.mutations import OPERATORS, mutants

from tskernels.emulator import Argument, EmulatorFault, TensorMap, Uninitialized, launch
from tskernels.gpu import latent_splits as splits

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]
FOLDER = Path(__file__).parents[2] / "kernels/tskernels/gpu/cuda"
SHARED_BYTES, WIDTH, LATENT = 232448, 576, 512
THREADS = {"90": 384, "100": 256}
FAULTS = (
    *("wait dropped", "wait for the other parity", "arrival dropped", "proxy fence dropped"),
    *("store to shared memory dropped", "store to the next place"),
)

Compiled = tuple[str, bool, str]
"""Architecture, whether the cache is in fp8, and PTX."""


@pytest.fixture(scope="module", params=["90", "90/fp8", "100", "100/fp8"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    which, is_fp8 = request.param.removesuffix("/fp8"), request.param.endswith("/fp8")
    path = tmp_path_factory.mktemp("ptx") / "kernel.ptx"
    options = ["-std=c++20", "-O3", "-ptx", "-gencode", f"arch=compute_{which}a,code=compute_{which}a", f"-DFP8_CACHE={int(is_fp8)}"]
    subprocess.run(["nvcc", *options, str(FOLDER / f"mla_decode_sm{which}.cu"), "-o", str(path)], check=True)
    return which, is_fp8, path.read_text()


def tiles(matrix: Array, rows: int, blocks: int) -> TensorMap:
    """Boxes of so many rows and blocks of 64 columns."""
    return TensorMap(matrix.reshape(len(matrix), -1, 64).transpose(1, 0, 2), (blocks, rows, 64))


def error(compiled: Compiled, heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int, blocks: int = 4) -> float:
    """Of a call, relative; the logarithms are right."""
    which, is_fp8, ptx = compiled
    ends = np.cumsum(queries).tolist()
    spans = [(end - count, end) for end, count in zip(ends, queries, strict=True)]
    used, columns = sum(-(-n // page) for n in lengths), max(-(-n // page) for n in lengths)
    order, tables = np.random.default_rng(0).permutation(used), np.full((len(lengths), columns), 2**30, np.int32)
    narrow, widen, nan = (to_fp8, from_fp8, 0x7F) if is_fp8 else (to_bf16, from_bf16, 0x7FC0)
    cache, first = narrow(normal(used, page, WIDTH, seed=1)), 0
    for i, n in enumerate(lengths):
        count = -(-n // page)
        tables[i, :count], first = order[first : first + count], first + count
        cache[tables[i, count - 1], n - (count - 1) * page :] = nan  # what lies past the end is no number
    q, rotated = to_bf16(normal(ends[-1] * heads, LATENT, seed=2)), to_bf16(normal(ends[-1] * heads, WIDTH - LATENT, seed=3))
    out, logarithms = np.zeros((len(q), LATENT), np.uint16), np.zeros(len(q), np.float32)
    work = splits.plan_splits(spans, list(lengths), heads, ends[-1], blocks, 1)
    split = [item for block in work for item in block if item.splits > 1]
    partials = np.zeros((max((i.partial + i.splits for i in split), default=1), 64, LATENT), np.float32)
    counters = np.zeros(max((i.counter for i in split), default=0) + 1, np.int32)
    encoded = np.array(splits.encode(work), np.int32)
    for array in (q, rotated, cache, tables, encoded):
        array.flags.writeable = False
    flat, box = cache.reshape(-1, WIDTH), min(page, 64)
    parts = ((4, 5) if which == "90" else (9,)) if box == 64 else (1, 1) if which == "90" else (1,)
    rows: list[Argument] = [flat, WIDTH] if is_fp8 else [tiles(flat, box, count) for count in parts]
    arguments: list[Argument] = [tiles(q, 64, 8), tiles(rotated, 64, 1), *rows, encoded, tables]
    arguments += [Uninitialized(a) for a in (out, logarithms, partials, np.zeros(partials.shape[:2], np.float32))]
    arguments += [counters, columns, page, heads, WIDTH**-0.5]
    launch(ptx, "mla_decode", blocks, 384 if is_fp8 else THREADS[which], arguments, shared_bytes=SHARED_BYTES)
    errors = []
    for i, ((begin, end), n) in enumerate(zip(spans, lengths, strict=True)):
        own = slice(begin * heads, end * heads)
        keys = widen(cache)[tables[i, : -(-n // page)]].reshape(-1, WIDTH)[:n]
        scores = np.concatenate([from_bf16(q[own]), from_bf16(rotated[own])], 1) @ keys.T * WIDTH**-0.5
        seen = n - (end - begin) + np.arange(len(scores)) // heads + 1
        weights = np.exp(np.where(np.arange(n) < seen[:, None], scores, -np.inf))
        errors.append(difference(from_bf16(out[own]), weights @ keys[:, :LATENT] / weights.sum(1, keepdims=True)))
        np.testing.assert_allclose(logarithms[own], np.log(weights.sum(1)), atol=2e-5)
    assert not counters.any()
    return max(errors)


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
def test_latent_decode_in_cuda(compiled: Compiled, heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int) -> None:
    assert error(compiled, heads, lengths, queries, page) < 3e-3


@pytest.mark.parametrize("compiled", ["90/fp8", "100/fp8"], indirect=True)
def test_faults_planted_where_fp8_is_widened_are_found(compiled: Compiled) -> None:
    """In the first and in the last place of each kind; five tiles, so that both stages are used again."""
    which, _, ptx = compiled
    widening = [number for number, line in enumerate(ptx.split("\n"), 1) if "e4m3x2" in line]
    begin, end = widening[0] - 30, widening[-1] + 40  # with the barriers before and after
    missed, found = [], 0
    for operator in (operator for operator in OPERATORS if operator.name in FAULTS):
        places = [m for m in mutants(ptx, [operator]) if begin <= m.line <= end]
        for mutant in {places[0].line: places[0], places[-1].line: places[-1]}.values():
            found += 1
            try:
                if error((which, True, mutant.text), 16, (310,), (1,), 64, blocks=1) < 3e-3:
                    missed.append((mutant.operator, mutant.line))
            except (EmulatorFault, AssertionError):
                pass
    assert not missed
    assert found >= 8
