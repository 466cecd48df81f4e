"""Small calls of latent attention decode in CUDA C++: their operands, what the emulator makes of them, and what is right."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tests.gpu.kernels_of_test import Array, difference, from_bf16, normal, to_bf16

from tskernels.emulator import Argument, TensorMap, Uninitialized, launch
from tskernels.gpu import latent_splits as splits

FOLDER = Path(__file__).parents[2] / "kernels/tskernels/gpu/cuda"
SHARED_BYTES, WIDTH, LATENT, BLOCKS = 232448, 576, 512, 4
THREADS = {"90": 384, "100": 256}
SHAPES = (
    (16, (1024, 37), (1, 1), 64),
    (16, (200,), (4,), 32),
    (32, (130, 300), (4, 4), 64),
    (128, (260,), (1,), 64),
)
"""Heads, lengths, new tokens of each sequence, page."""


@dataclass(frozen=True)
class MlaCase:
    """which: the architecture."""

    which: str
    heads: int
    lengths: tuple[int, ...]
    queries: tuple[int, ...]
    page: int

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        ends = np.cumsum(self.queries).tolist()
        return [(end - count, end) for end, count in zip(ends, self.queries, strict=True)]

    @cached_property
    def work(self) -> list[list[splits.Item]]:
        return splits.plan_splits(self.spans, list(self.lengths), self.heads, self.spans[-1][1], BLOCKS, 1)

    @cached_property
    def encoded(self) -> Array:
        return np.array(splits.encode(self.work), np.int32)

    @cached_property
    def num_parts(self) -> tuple[int, int]:
        """Partial results, and counters."""
        split = [item for block in self.work for item in block if item.splits > 1]
        return max((i.partial + i.splits for i in split), default=1), max((i.counter for i in split), default=0) + 1

    @cached_property
    def paged(self) -> tuple[Array, Array]:
        """Cache and tables; what lies past the end is no number."""
        counts = [-(-n // self.page) for n in self.lengths]
        order, tables = np.random.default_rng(0).permutation(sum(counts)), np.full((len(counts), max(counts)), 2**30, np.int32)
        cache, first = to_bf16(normal(sum(counts), self.page, WIDTH, seed=1)), 0
        for i, (n, count) in enumerate(zip(self.lengths, counts, strict=True)):
            tables[i, :count], first = order[first : first + count], first + count
            cache[tables[i, count - 1], n - (count - 1) * self.page :] = 0x7FC0
        return cache, tables

    @cached_property
    def queried(self) -> tuple[Array, Array]:
        """[rows, 512] and [rows, 64]."""
        rows = self.spans[-1][1] * self.heads
        return to_bf16(normal(rows, LATENT, seed=2)), to_bf16(normal(rows, WIDTH - LATENT, seed=3))

    @property
    def boxes(self) -> tuple[int, tuple[int, ...]]:
        """Rows of the cache that are loaded at once, and of each map of it the blocks of columns."""
        box = min(self.page, 64)
        return box, ((4, 5) if self.which == "90" else (9,)) if box == 64 else (1, 1) if self.which == "90" else (1,)

    def emulated(self, ptx: str) -> tuple[Array, Array, Array]:
        """The result in bf16, logarithms, and counters."""
        (q, rotated), (cache, tables), (num_partials, num_counters) = self.queried, self.paged, self.num_parts
        out, logarithms = np.zeros((len(q), LATENT), np.uint16), np.zeros(len(q), np.float32)
        partials = np.zeros((num_partials, 64, LATENT), np.float32)
        counters = np.zeros(num_counters, np.int32)
        for array in (q, rotated, cache, tables, self.encoded):
            array.flags.writeable = False
        flat, (box, counts) = cache.reshape(-1, WIDTH), self.boxes
        arguments: list[Argument] = [_tiles(q, 64, 8), _tiles(rotated, 64, 1), *(_tiles(flat, box, count) for count in counts)]
        arguments += [self.encoded, tables]
        arguments += [Uninitialized(a) for a in (out, logarithms, partials, np.zeros(partials.shape[:2], np.float32))]
        arguments += [counters, tables.shape[1], self.page, self.heads, WIDTH**-0.5]
        launch(ptx, "mla_decode", BLOCKS, THREADS[self.which], arguments, shared_bytes=SHARED_BYTES)
        return out, logarithms, counters

    def check(self, out: Array, logarithms: Array) -> float:
        """The largest error; the logarithms are right."""
        (q, rotated), (cache, tables) = self.queried, self.paged
        errors = []
        for i, ((begin, end), n) in enumerate(zip(self.spans, self.lengths, strict=True)):
            rows = slice(begin * self.heads, end * self.heads)
            keys = from_bf16(cache)[tables[i, : -(-n // self.page)]].reshape(-1, WIDTH)[:n]
            scores = np.concatenate([from_bf16(q[rows]), from_bf16(rotated[rows])], 1) @ keys.T * WIDTH**-0.5
            seen = n - (end - begin) + np.arange(len(scores)) // self.heads + 1
            weights = np.exp(np.where(np.arange(n) < seen[:, None], scores, -np.inf))
            errors.append(difference(from_bf16(out[rows]), weights @ keys[:, :LATENT] / weights.sum(1, keepdims=True)))
            np.testing.assert_allclose(logarithms[rows], np.log(weights.sum(1)), atol=2e-5)
        return max(errors)


def compiled(which: str, form: str, path: Path) -> Path:
    """form: ptx or cubin."""
    target = f"arch=compute_{which}a,code={'compute' if form == 'ptx' else 'sm'}_{which}a"
    source = str(FOLDER / f"mla_decode_sm{which}.cu")
    subprocess.run(["nvcc", "-std=c++20", "-O3", f"-{form}", "-gencode", target, source, "-o", str(path)], check=True)
    return path


def _tiles(matrix: Array, rows: int, blocks: int) -> TensorMap:
    """Boxes of so many rows and blocks of 64 columns."""
    return TensorMap(matrix.reshape(len(matrix), -1, 64).transpose(1, 0, 2), (blocks, rows, 64))
