"""Latent attention decode in CUDA C++, compiled by nvcc for Hopper and Blackwell, is right in the emulator, without a fault."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.gpu.kernels_of_test import Array, difference, from_bf16, normal, to_bf16

from tskernels.emulator import Argument, TensorMap, Uninitialized, launch
from tskernels.gpu import latent_splits as splits

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]
FOLDER = Path(__file__).parents[2] / "kernels/tskernels/gpu/cuda"
SHARED_BYTES, WIDTH, LATENT = 232448, 576, 512
THREADS = {"90": 384, "100": 256}


@pytest.fixture(scope="module", params=["90", "100"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Architecture and PTX."""
    which = request.param
    path = tmp_path_factory.mktemp("ptx") / "kernel.ptx"
    target = f"arch=compute_{which}a,code=compute_{which}a"
    subprocess.run(
        ["nvcc", "-std=c++20", "-O3", "-ptx", "-gencode", target, str(FOLDER / f"mla_decode_sm{which}.cu"), "-o", str(path)], check=True
    )
    return which, path.read_text()


def tiles(matrix: Array, rows: int, blocks: int) -> TensorMap:
    """Boxes of so many rows and blocks of 64 columns."""
    return TensorMap(matrix.reshape(len(matrix), -1, 64).transpose(1, 0, 2), (blocks, rows, 64))


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
def test_latent_decode_in_cuda(
    compiled: tuple[str, str], heads: int, lengths: tuple[int, ...], queries: tuple[int, ...], page: int
) -> None:
    which, ptx = compiled
    blocks, ends = 4, np.cumsum(queries).tolist()
    spans = [(end - count, end) for end, count in zip(ends, queries, strict=True)]
    used, columns = sum(-(-n // page) for n in lengths), max(-(-n // page) for n in lengths)
    order, tables = np.random.default_rng(0).permutation(used), np.full((len(lengths), columns), 2**30, np.int32)
    cache, first = to_bf16(normal(used, page, WIDTH, seed=1)), 0
    for i, n in enumerate(lengths):
        count = -(-n // page)
        tables[i, :count], first = order[first : first + count], first + count
        cache[tables[i, count - 1], n - (count - 1) * page :] = 0x7FC0  # what lies past the end is no number
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
    arguments: list[Argument] = [tiles(q, 64, 8), tiles(rotated, 64, 1), *(tiles(flat, box, count) for count in parts), encoded, tables]
    arguments += [Uninitialized(a) for a in (out, logarithms, partials, np.zeros(partials.shape[:2], np.float32))]
    arguments += [counters, columns, page, heads, WIDTH**-0.5]
    launch(ptx, "mla_decode", blocks, THREADS[which], arguments, shared_bytes=SHARED_BYTES)
    for i, ((begin, end), n) in enumerate(zip(spans, lengths, strict=True)):
        rows = slice(begin * heads, end * heads)
        keys = from_bf16(cache)[tables[i, : -(-n // page)]].reshape(-1, WIDTH)[:n]
        scores = np.concatenate([from_bf16(q[rows]), from_bf16(rotated[rows])], 1) @ keys.T * WIDTH**-0.5
        seen = n - (end - begin) + np.arange(len(scores)) // heads + 1
        weights = np.exp(np.where(np.arange(n) < seen[:, None], scores, -np.inf))
        assert difference(from_bf16(out[rows]), weights @ keys[:, :LATENT] / weights.sum(1, keepdims=True)) < 3e-3
        np.testing.assert_allclose(logarithms[rows], np.log(weights.sum(1)), atol=2e-5)
    assert not counters.any()
