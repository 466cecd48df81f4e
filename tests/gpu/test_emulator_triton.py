"""What Triton makes of latent attention decode, for Hopper and Blackwell, computes what it should in the emulator, and has no fault."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.kernels_of_test import Array, difference, from_bf16, from_fp8, normal, to_bf16, to_fp8

from tskernels.emulator import EmulatorFault, Uninitialized, launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton: pip install 'tsc-llm[triton]'"),
]
ROOT = Path(__file__).parents[2]
WIDTH, LATENT = 576, 512


@dataclass(frozen=True)
class Configuration:
    """How the kernel is compiled; see `latent_triton.compiled`."""

    architecture: int
    dtype: str
    heads: int
    queries: int
    page: int
    pages: int
    parts: int
    rows: int
    keys: int
    warps: int
    stages: int


def configuration(architecture: int, dtype: str, heads: int, queries: int, pages: int, parts: int = 2, page: int = 64) -> Configuration:
    """Tiles that fit the architecture's shared and tensor memory: small ones run mma.sync, those of 64 rows wgmma and tcgen05."""
    small = heads * queries < 64
    tile = (16, 32, 4, 2) if small else (64, 64, 8, 1) if dtype == "bf16" else (64, 64, 4, 2)
    return Configuration(architecture, dtype, heads, queries, page, pages, parts, *tile)


def compile_all(wanted: list[Configuration]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(asdict(c)) + "\n" for c in wanted)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu.latent_triton"]
    made = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert made.returncode == 0, made.stderr[-4000:]
    return [json.loads(line) for line in made.stdout.splitlines()]


def run(made: dict[str, Any], c: Configuration, lengths: tuple[int, ...], ptx: str | None = None) -> float:
    """The error of the parts joined."""
    encode, decode = (to_bf16, from_bf16) if c.dtype == "bf16" else (to_fp8, from_fp8)
    rows, random = c.heads * c.queries, np.random.default_rng(7)
    q = encode(normal(len(lengths), rows, WIDTH, seed=8))
    used = sum(-(-n // c.page) for n in lengths)
    cache = encode(normal(used, c.page, WIDTH, seed=9))
    tables = np.zeros((len(lengths), c.pages), np.int32)
    order = iter(random.permutation(used))
    for i, n in enumerate(lengths):
        tables[i, : -(-n // c.page)] = [next(order) for _ in range(-(-n // c.page))]
    out = np.empty((len(lengths), c.parts, rows, LATENT), np.float32)
    logarithms = np.empty((len(lengths), c.parts, rows), np.float32)
    sizes = np.array(lengths, np.int32)
    for array in (q, cache, tables, sizes):
        array.flags.writeable = False
    scale = WIDTH**-0.5 * 1.4426950408889634
    arguments = [q, cache, tables, sizes, Uninitialized(out), Uninitialized(logarithms), scale]
    text = ptx or made["ptx"]
    arguments += [0] * (text.count(".param ") - len(arguments))  # scratch memory, of which it takes none
    grid = (-(-rows // c.rows), len(lengths), c.parts)
    launch(text, "decode", grid, 32 * c.warps, arguments, shared_bytes=made["shared"], strict=False)
    return max(
        difference(_joined(out[i], logarithms[i]), _reference(decode(q[i]), decode(cache)[tables[i]].reshape(-1, WIDTH)[:n], c, scale))
        for i, n in enumerate(lengths)
    )


def _joined(out: Array, logarithms: Array) -> Array:
    weights = np.exp2(logarithms.astype(np.float64) - logarithms.max(0))
    joined: Array = (out * weights[..., None]).sum(0) / weights.sum(0)[:, None]
    return joined


def _reference(q: Array, keys: Array, c: Configuration, scale: float) -> Array:
    seen = len(keys) - c.queries + np.arange(len(q)) // c.heads
    scores = np.where(np.arange(len(keys)) <= seen[:, None], q @ keys.T * scale, -np.inf)
    weights = np.exp2(scores - scores.max(1, keepdims=True))
    expected: Array = weights @ keys[:, :LATENT] / weights.sum(1, keepdims=True)
    return expected


SHAPES = [(16, 1), (16, 4), (32, 4), (128, 1)]
MOST = {"bf16": 2.5e-3, "fp8e4nv": 3e-2}
"""The error of weights rounded to the type of the cache."""


@pytest.mark.parametrize("dtype", ["bf16", "fp8e4nv"])
@pytest.mark.parametrize("architecture", [90, 100])
def test_latent_decode_by_triton(architecture: int, dtype: str) -> None:
    """Ragged lengths; of the first shape a sequence of 1,024 keys."""
    wanted = [configuration(architecture, dtype, heads, queries, pages=16) for heads, queries in SHAPES]
    for (heads, queries), c, made in zip(SHAPES, wanted, compile_all(wanted), strict=True):
        tensor = "mma.sync" if heads * queries < 64 else "wgmma.mma_async" if architecture == 90 else "tcgen05.mma"
        assert tensor in made["ptx"]
        lengths = (1024, 37) if (heads, queries) == (16, 1) else (201,)
        assert run(made, c, lengths) < MOST[dtype], (heads, queries)


@pytest.mark.parametrize("architecture", [90, 100])
def test_faults_planted_into_what_triton_emits_are_found(architecture: int) -> None:
    """All of one kind dropped: of several one may do what another does, too."""
    c = configuration(architecture, "bf16", 16, 4, pages=4, parts=1)
    [made] = compile_all([c])
    lines = made["ptx"].split("\n")
    kinds = ["wgmma.wait_group", "wgmma.commit_group", "wgmma.fence"]
    if architecture == 100:
        kinds = ["tcgen05.wait::ld", "tcgen05.wait::st", "tcgen05.commit", "fence.proxy.async", "tcgen05.dealloc"]
    for kind in ["bar.sync", *kinds]:
        mutated = "\n".join("" if kind in line else line for line in lines)
        assert mutated != made["ptx"]
        with suppress(EmulatorFault):
            assert run(made, c, (150,), mutated) > MOST["bf16"], kind
