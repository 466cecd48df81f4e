"""Collectives and payload bytes per token of well-known blocks on four ranks, ours beside what is known to be enough.

usage: python benchmarks/plans.py [--json] [--jax]

Each case is placed at its real size in bf16. `limit` is what the case may move at most (the best plan that we know of); with --jax the
same block is also compiled by XLA (jit, Shardy) for four forced host devices, and the collectives are read from its HLO. Payload: the
tensor of an all-reduce, the output of an all-gather, the input of a reduce-scatter, what a rank sends in an all-to-all or a permute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs import DEEPSEEK_V3, LLAMA_3_8B, QWEN_3_30B

from tsc.front import place_model, read_model
from tspasses.placed import Options
from tspasses.plan import Plan, plan_of

ROOT = Path(__file__).parents[1]
RANKS = 4


@dataclass(frozen=True)
class Case:
    """Which modules of a model count, and the most they may move: kinds a layer, and payload bytes per row of `row`.

    values: of those only these, by name. jax: the function of `plans_jax.py` that is the same block, where there is one."""

    name: str
    model: str
    config: Mapping[str, Any]
    modules: Sequence[str]
    kinds: Mapping[str, int]
    bytes_per_row: int
    row: str = "T"
    tokens: int = 1  # of the step
    sequences: int = 1
    times: bool = False  # every run of a module in a step, not one
    values: Sequence[str] = ()
    jax: str = ""


CASES = (
    Case("Llama-3-8B block", "models/llama.ts", LLAMA_3_8B, ["Layer"], {"all_reduce": 2}, 16384, jax="llama"),
    Case(
        "the same, tokens sharded, 4096 tokens",
        "examples/token_sharded/token_sharded.ts",
        LLAMA_3_8B,
        ["Layer"],
        {"all_gather": 2, "reduce_scatter": 2},
        32768,
        tokens=4096,
    ),
    Case(
        "parallel attention + MLP block",
        "examples/parallel_block/parallel.ts",
        LLAMA_3_8B,
        ["Layer"],
        {"all_reduce": 1},
        8192,
        jax="parallel",
    ),
    Case(
        "K/V heads 2 < TP 4",
        "models/llama.ts",
        {**LLAMA_3_8B, "num_key_value_heads": 2},
        ["Layer"],
        {"all_reduce": 2},
        16384,
        jax="few_heads",
    ),
    Case("vocabulary-parallel embedding", "models/llama.ts", LLAMA_3_8B, ["decode"], {"all_reduce": 1}, 8192, jax="embedding"),
    Case("argmax of sharded logits", "benchmarks/rows.ts", LLAMA_3_8B, ["Argmax"], {"all_reduce": 1}, 32, row="S"),
    Case("top-k 50 of sharded logits", "benchmarks/rows.ts", LLAMA_3_8B, ["TopK"], {"all_gather": 1}, 1600, row="S"),
    Case(
        "softmax of sharded logits, 16 sequences",  # for fewer one gather is faster than two small all-reduces
        "benchmarks/rows.ts",
        LLAMA_3_8B,
        ["Softmax"],
        {"all_reduce": 2},
        8,
        row="S",
        sequences=16,
    ),
    Case("Qwen3-30B-A3B layer", "models/qwen3_moe.ts", QWEN_3_30B, ["Layer"], {"all_reduce": 2}, 8192, jax="qwen3_moe"),
    Case(
        "DeepSeek-V3 MLA",
        "models/deepseek_v3.ts",
        DEEPSEEK_V3,
        ["Layer_1"],
        {"all_reduce": 1},
        14336,
        values=["attention"],
        jax="mla",
    ),
    Case(
        "DeepSeek-V3 MoE, tokens whole",
        "models/deepseek_v3.ts",
        DEEPSEEK_V3,
        ["Layer_1"],
        {"all_reduce": 1},
        14336,
        values=["made"],
        jax="mixture",
    ),
    Case(
        "DeepSeek-V3 MoE, tokens sharded, 4096 tokens",
        "examples/expert_parallel/expert_parallel.ts",
        DEEPSEEK_V3,
        ["Block"],
        {"all_gather": 1, "reduce_scatter": 1},
        28672,
        tokens=4096,
        jax="mixture_sharded",
    ),
    Case(
        "Llama-3-8B decode, whole model",
        "models/llama.ts",
        LLAMA_3_8B,
        ["decode", "Layer"],
        {"all_reduce": 65},
        532480,
        times=True,
    ),
    Case(
        "the same choosing tokens: beside them, a sequence",
        "examples/greedy/greedy.ts",
        LLAMA_3_8B,
        ["decode"],
        {"all_reduce": 1},
        32,
        row="S",
    ),
)


@dataclass(frozen=True)
class Result:
    """What a plan holds of a case. jax_bytes and jax_kinds: of XLA's program, None where it was not asked or has no such block."""

    case: str
    kinds: Mapping[str, int]
    bytes_per_row: int
    limit: int
    jax_kinds: Mapping[str, int] | None = None
    jax_bytes: int | None = None

    @property
    def holds(self) -> bool:
        return self.bytes_per_row <= self.limit and (self.jax_bytes is None or self.bytes_per_row <= self.jax_bytes)


def measure(case: Case) -> Result:
    """Place the case's model and count the collectives over `row` of its modules."""
    placed = place_model(read_model(ROOT / case.model), case.config, {"tp": RANKS}, Options("bf16", case.tokens, case.sequences))
    plan: Plan = plan_of(placed)
    kinds: Counter[str] = Counter()
    size = 0
    for item in plan.items:
        if item.module in case.modules and item.row == case.row and (not case.values or item.value in case.values):
            times = item.times if case.times else 1
            kinds[item.kind] += times
            size += item.bytes_per_row * times
    return Result(case.name, dict(kinds), size, case.bytes_per_row)


def beside_jax(results: Sequence[Result]) -> list[Result]:
    """The results with XLA's; its devices are forced at start-up, so it has a process of its own."""
    blocks = {c.name: c.jax for c in CASES if c.jax}
    command = [sys.executable, str(Path(__file__).parent / "plans_jax.py"), *sorted(set(blocks.values()))]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return [
        Result(r.case, r.kinds, r.bytes_per_row, r.limit, found[blocks[r.case]]["kinds"], found[blocks[r.case]]["bytes_per_token"])
        if r.case in blocks
        else r
        for r in results
    ]


def table(results: Sequence[Result]) -> str:
    rows = [("case", "collectives", "bytes", "limit", "XLA's collectives", "XLA's bytes", "")]
    for r in results:
        theirs = "" if r.jax_kinds is None else _kinds(r.jax_kinds)
        size = "" if r.jax_bytes is None else f"{r.jax_bytes:,}"
        rows.append((r.case, _kinds(r.kinds), f"{r.bytes_per_row:,}", f"{r.limit:,}", theirs, size, "ok" if r.holds else "MORE"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {k}" for k, n in kinds.items()) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description="collectives and bytes of known blocks on four ranks, bf16")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--jax", action="store_true", help="beside XLA's plan of the same blocks (needs the package jax)")
    arguments = parser.parse_args()
    results = [measure(case) for case in CASES]
    if arguments.jax:
        results = beside_jax(results)
    print(json.dumps([asdict(r) for r in results], indent=2) if arguments.json else table(results))
    sys.exit(0 if all(r.holds for r in results) else 1)


if __name__ == "__main__":
    main()
