"""Products of few rows on a GPU beside cuBLAS: `python benchmarks/gpu_products.py [--json FILE]`.

Weights of layers of Qwen3 8B and DeepSeek-V2-Lite in bf16, of each so many that no cache of the device holds one until its next turn.
Times are those of one call in a graph of many, with what lies between two calls; a rate counts the weight alone. Prints for each the error
against f64. Of a gated product cuBLAS makes the product, and torch the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_machine import machine
from torch import Tensor

from tskernels.registry import lookup, op_named

SHAPES = {
    "qwen3-8b queries, keys and values": ("ts::linear", 6144, 4096),
    "qwen3-8b output": ("ts::linear", 4096, 4096),
    "qwen3-8b gate and up": ("ts::gated_linear", 24576, 4096),
    "qwen3-8b down": ("ts::linear", 4096, 12288),
    "qwen3-8b head": ("ts::linear", 151936, 4096),
    "deepseek-v2-lite queries": ("ts::linear", 3072, 2048),
    "deepseek-v2-lite latents": ("ts::linear", 576, 2048),
    "deepseek-v2-lite output": ("ts::linear", 2048, 2048),
}
"""Outputs and inputs."""
ROWS = (1, 2, 4, 8, 16)
KERNELS = ("triton", "torch")
MEMORY = 1 << 30
"""Bytes of weights, which no cache holds."""
_TURNS = 24


def recorded(call: Callable[[Tensor], object], weights: list[Tensor], count: int) -> torch.cuda.CUDAGraph:
    """`count` calls, with these weights in turns."""
    call(weights[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for n in range(count):
            call(weights[n % len(weights)])
    return graph


def microseconds(graphs: list[torch.cuda.CUDAGraph], count: int) -> list[float]:
    """Of one of the `count` calls of each graph: they take turns, the first of which warm the device up."""
    event: Any = torch.cuda.Event
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(_TURNS):
        for graph, found in zip(graphs, times, strict=True):
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) * 1e3 / count)
    return [statistics.median(found[_TURNS // 2 :]) for found in times]


def case(op: str, outputs: int, inner: int, rows: int, memory: Tensor) -> dict[str, Any]:
    size = outputs * inner
    weights = list(memory[: memory.numel() // size * size].view(-1, outputs, inner))
    attributes = {"activation": "silu"} if op == "ts::gated_linear" else {}
    x = torch.randn(rows, inner, device="cuda").bfloat16()
    expected = op_named(op).reference(x.double(), weights[0].double(), **attributes)
    count = max(4, min(80, 2 * len(weights)))
    found: dict[str, Any] = {"rows": rows}
    graphs = []
    for kernel in KERNELS:
        out = torch.full_like(expected, torch.nan, dtype=torch.bfloat16)

        def call(w: Tensor, kernel: str = kernel, out: Tensor = out) -> None:
            lookup(op, kernel).function(x, w, out=out, **attributes)

        call(weights[0])
        found[kernel] = {"error": float((out.double() - expected).norm() / expected.norm())}
        graphs.append(recorded(call, weights, count))
    for kernel, time in zip(KERNELS, microseconds(graphs, count), strict=True):
        found[kernel] |= {"us": time, "gb_per_second": 2e-3 * size / time}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    facts = machine()
    print(json.dumps(facts))
    memory = torch.randn(max(MEMORY // 2, 151936 * 4096), device="cuda", dtype=torch.bfloat16).div_(64)
    results = []
    for name, (op, outputs, inner) in SHAPES.items():
        for rows in ROWS:
            found = {"case": name, "op": op, "outputs": outputs, "inputs": inner, **case(op, outputs, inner, rows, memory)}
            results.append(found)
            ours, theirs = found["triton"], found["torch"]
            print(
                f"{name:34} {rows:3} rows: {ours['us']:7.2f} us {ours['gb_per_second']:5.0f} GB/s, cuBLAS {theirs['us']:7.2f} us "
                f"{theirs['gb_per_second']:5.0f} GB/s, errors {ours['error']:.1e} {theirs['error']:.1e}",
                flush=True,
            )
    if options.json:
        text = json.dumps({"command": "python benchmarks/gpu_products.py", "machine": facts, "results": results}, indent=1)
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
