"""A Triton kernel of latent attention (MLA) decode for the emulator's tests, with parts of a sequence's keys for each block.

`python -m tests.gpu.latent_triton` reads lines of JSON, a configuration each, and answers with what Triton compiles each to: a process
of its own, since a compiler may take its process along.
"""
# mypy: ignore-errors
# since it is written in Triton's language.

from __future__ import annotations

import json
import sys
from typing import Any

import triton
import triton.language as tl

LATENT, ROTATED = 512, 64


@triton.jit
def decode(
    q, cache, tables, lengths, out, logarithms, scale,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr, PAGES: tl.constexpr,
    PARTS: tl.constexpr, LATENT: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """q [S, QUERIES * HEADS, 576], cache [pages, PAGE, 576], out f32[S, PARTS, rows, 512], logarithms f32[S, PARTS, rows] to the base 2."""
    sequence, part = tl.program_id(1), tl.program_id(2)
    rows: tl.constexpr = HEADS * QUERIES
    width: tl.constexpr = LATENT + ROTATED
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    latent, rotated = tl.arange(0, LATENT), LATENT + tl.arange(0, ROTATED)
    q += (sequence * rows + row[:, None]) * width
    q_latent = tl.load(q + latent[None, :], mask=there[:, None], other=0.0)
    q_rotated = tl.load(q + rotated[None, :], mask=there[:, None], other=0.0)
    length = tl.load(lengths + sequence)
    share = tl.cdiv(tl.cdiv(length, PARTS), KEYS) * KEYS
    end = tl.minimum((part + 1) * share, length)
    last_seen = length - QUERIES + row // HEADS
    most = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, LATENT], tl.float32)
    for first in range(part * share, end, KEYS):
        key = first + tl.arange(0, KEYS)
        known = key < end
        page = tl.load(tables + sequence * PAGES + key // PAGE, mask=known, other=0)
        at = cache + (page.to(tl.int64) * PAGE + key % PAGE)[:, None] * width
        k_latent = tl.load(at + latent[None, :], mask=known[:, None], other=0.0)
        k_rotated = tl.load(at + rotated[None, :], mask=known[:, None], other=0.0)
        scores = tl.dot(q_rotated, tl.trans(k_rotated), tl.dot(q_latent, tl.trans(k_latent))) * scale
        scores = tl.where(known[None, :] & (key[None, :] <= last_seen[:, None]), scores, -float("inf"))
        larger = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(larger == -float("inf"), 0.0, larger)
        weights = tl.exp2(scores - base[:, None])
        shrunk = tl.exp2(most - base)
        total = total * shrunk + tl.sum(weights, 1)
        sums = tl.dot(weights.to(k_latent.dtype), k_latent, sums * shrunk[:, None])
        most = larger
    place = (sequence * PARTS + part) * rows + row
    tl.store(out + place[:, None] * LATENT + latent[None, :], sums / tl.where(total > 0, total, 1.0)[:, None], mask=there[:, None])
    tl.store(logarithms + place, tl.where(total > 0, most + tl.log2(total), -float("inf")), mask=there)


def compiled(
    architecture: int,
    dtype: str,
    heads: int,
    queries: int,
    page: int,
    pages: int,
    parts: int,
    rows: int,
    keys: int,
    warps: int,
    stages: int,
) -> dict[str, Any]:
    """The PTX, with the bytes of shared memory that it needs."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"HEADS": heads, "QUERIES": queries, "ROWS": rows, "KEYS": keys, "PAGE": page, "PAGES": pages, "PARTS": parts}
    constants |= {"LATENT": LATENT, "ROTATED": ROTATED}
    names = decode.arg_names
    types = {
        "q": f"*{dtype}",
        "cache": f"*{dtype}",
        "tables": "*i32",
        "lengths": "*i32",
        "out": "*fp32",
        "logarithms": "*fp32",
        "scale": "fp32",
    }
    source = ASTSource(
        fn=decode,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "").startswith("*")},
    )
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps, "num_stages": stages})
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(compiled(**json.loads(line))), flush=True)
