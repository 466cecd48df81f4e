"""Latent attention in CUDA C++ in the emulator: what nvcc makes of its sources, steps to run it on, and how wrong the result is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tests.gpu.kernels_of_test import Array, difference, from_bf16, from_fp8, normal, to_bf16, to_fp8

from tskernels.emulator import Argument, Report, TensorMap, Uninitialized, launch
from tskernels.gpu import latent_splits as splits

FOLDER = Path(__file__).parents[2] / "kernels/tskernels/gpu/cuda"
SHARED_BYTES, WIDTH, LATENT = 232448, 576, 512


@dataclass(frozen=True)
class Decode:
    """A kernel. maps: of each of the cache's maps the rows of a box, at most, and its blocks of 64 columns; none where the cache is in fp8,
    which is read as it lies."""

    file: str
    function: str
    architecture: str
    threads: int
    maps: tuple[tuple[int, int], ...]
    together: int = 1

    @property
    def is_fp8(self) -> bool:
        return not self.maps


DECODES = {
    "sm90": Decode("mla_decode_sm90.cu", "mla_decode", "90a", 384, ((64, 4), (64, 5))),
    "sm90_gangs": Decode("mla_decode_sm90_gangs.cu", "mla_decode_gangs", "90a", 384, ((64, 1),)),
    "sm90_fp8": Decode("mla_decode_sm90.cu", "mla_decode", "90a", 384, ()),
    "sm100": Decode("mla_decode_sm100.cu", "mla_decode", "100a", 256, ((64, 9),)),
    "sm100_fp8": Decode("mla_decode_sm100.cu", "mla_decode", "100a", 384, ()),
    "sm100_pairs": Decode("mla_decode_sm100_pairs.cu", "mla_decode_pairs", "100a", 256, ((32, 9), (64, 4)), together=2),
}


@cache
def ptx_of(name: str) -> str:
    decode = DECODES[name]
    return compile_to_ptx((FOLDER / decode.file).read_text(), decode.architecture, is_fp8=decode.is_fp8)


def compile_to_ptx(source: str, architecture: str, *, is_fp8: bool = False, headers: Mapping[str, str] | None = None) -> str:
    """What nvcc makes of a source, which includes those of the folder, but for `headers`, texts by name."""
    target = f"arch=compute_{architecture},code=compute_{architecture}"
    with TemporaryDirectory() as folder:
        written, path = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
        written.write_text(source)
        for name, text in (headers or {}).items():
            Path(folder, name).write_text(text)
        command = ["nvcc", "-std=c++20", "-O3", "-ptx", "-I", str(FOLDER), "-gencode", target]
        subprocess.run([*command, f"-DFP8_CACHE={int(is_fp8)}", str(written), "-o", str(path)], check=True)
        return path.read_text()


def run(
    decode: Decode,
    ptx: str,
    heads: int,
    lengths: Sequence[int],
    queries: Sequence[int],
    page: int,
    blocks: int = 4,
    loud: float = 1,
    magnitude: float = 1,
    max_instructions: int = 1 << 32,
    dependent: bool = False,
    start: Callable[..., Report] = launch,
) -> tuple[float, float, Report]:
    """The error of the result, relative, and the largest of the logarithms. queries: newest tokens of each sequence; loud: what the queries
    are multiplied by: of 8 the maxima grow so much from tile to tile that the result has to be made smaller. magnitude: what the cache is
    multiplied by, and the queries are divided by. What lies in the cache past the end of a sequence is no number. dependent: the launch
    before still runs, which has all but the list of work, the tables, and what is cached of earlier steps. start: what launches it, as the
    emulator does."""
    ends = np.cumsum(queries).tolist()
    spans = [(end - count, end) for end, count in zip(ends, queries, strict=True)]
    used, columns = sum(-(-n // page) for n in lengths), max(-(-n // page) for n in lengths)
    order, tables = np.random.default_rng(0).permutation(used), np.full((len(lengths), columns), 2**30, np.int32)
    narrow, widen, nan = (to_fp8, from_fp8, 0x7F) if decode.is_fp8 else (to_bf16, from_bf16, 0x7FC0)
    cache, first = narrow(magnitude * normal(used, page, WIDTH, seed=1)), 0
    for i, n in enumerate(lengths):
        count = -(-n // page)
        tables[i, :count], first = order[first : first + count], first + count
        cache[tables[i, count - 1], n - (count - 1) * page :] = nan
    q = to_bf16(loud / magnitude * normal(ends[-1] * heads, LATENT, seed=2))
    rotated = to_bf16(1 / magnitude * normal(ends[-1] * heads, WIDTH - LATENT, seed=3))
    out, logarithms = np.zeros((len(q), LATENT), np.uint16), np.zeros(len(q), np.float32)
    work = splits.plan_splits(spans, list(lengths), heads, ends[-1], blocks, 1, decode.together)
    split = [item for block in work for item in block if item.splits > 1]
    num_partials = max((i.partial + i.splits for i in split), default=1)
    partials, half_rows = np.zeros((num_partials, 64, LATENT), np.float16), np.zeros((num_partials, 64, 2, 2), np.float32)
    counters = np.zeros(max((i.counter for i in split), default=0) + 1, np.int32)
    encoded = np.array(splits.encode(work), np.int32)
    for array in (q, rotated, cache, tables, encoded):
        array.flags.writeable = False
    flat = cache.reshape(-1, WIDTH)
    maps = [(gcd(page, rows), count if page % rows == 0 else 1) for rows, count in decode.maps]
    rows_of_cache: list[Argument] = [flat, WIDTH] if decode.is_fp8 else [_boxes(flat, *box) for box in maps]
    arguments: list[Argument] = [_boxes(q, 64, 8), _boxes(rotated, 64, 1), *rows_of_cache, encoded, tables]
    arguments += [Uninitialized(a) for a in (out, logarithms, partials, half_rows)]
    arguments += [counters, columns, page, heads, WIDTH**-0.5]
    unfinished = None
    if dependent:
        newest = [
            cache[tables[i, token // page], token % page]
            for i, (n, count) in enumerate(zip(lengths, queries, strict=True))
            for token in range(n - count, n)
        ]
        unfinished = [q, rotated, *newest, out, logarithms, partials, half_rows, counters]
    report = start(
        ptx,
        decode.function,
        blocks,
        decode.threads,
        arguments,
        shared_bytes=SHARED_BYTES,
        max_instructions=max_instructions,
        unfinished=unfinished,
    )
    error = of_logarithms = 0.0
    for i, ((begin, end), n) in enumerate(zip(spans, lengths, strict=True)):
        rows = slice(begin * heads, end * heads)
        keys = widen(cache)[tables[i, : -(-n // page)]].reshape(-1, WIDTH)[:n]
        scores = np.concatenate([from_bf16(q[rows]), from_bf16(rotated[rows])], 1) @ keys.T * WIDTH**-0.5
        seen = n - (end - begin) + np.arange(len(scores)) // heads + 1
        weights = np.exp(np.where(np.arange(n) < seen[:, None], scores, -np.inf))
        error = max(error, difference(from_bf16(out[rows]), weights @ keys[:, :LATENT] / weights.sum(1, keepdims=True)))
        wrong = np.abs(logarithms[rows] - np.log(weights.sum(1)))
        of_logarithms = max(of_logarithms, float(wrong.max()) if np.isfinite(wrong).all() else float("inf"))
    assert not counters.any()
    return error, of_logarithms, report


def _boxes(matrix: Array, rows: int, blocks: int) -> TensorMap:
    """Of so many rows and blocks of 64 columns."""
    return TensorMap(matrix.reshape(len(matrix), -1, 64).transpose(1, 0, 2), (blocks, rows, 64))
