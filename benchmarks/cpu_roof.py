"""What the machine can do at most, through torch: reading memory, and multiplying matrices.

usage: python benchmarks/cpu_roof.py THREADS    (`benchmarks/cpu.py` starts it; each line asks for a measurement, the answer is JSON)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

_BYTES = 2**30
_ROWS, _WIDTH = 1024, 2048  # a prompt's matmul: rows of tokens, a square weight


def best_seconds(run: Callable[[], object], times: int) -> float:
    """The least of so many: a roof is what can be reached."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    half = _BYTES // 8
    words = torch.ones(2 * half)
    operands = {
        name: (torch.randn(_ROWS, _WIDTH).to(dtype), torch.randn(_WIDTH, _WIDTH).to(dtype))
        for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32))
    }
    print(json.dumps({"version": torch.__version__}), flush=True)
    for _ in sys.stdin:
        found = {"bandwidth": _BYTES / best_seconds(lambda: torch.dot(words[:half], words[half:]), 8)}
        for name, (x, w) in operands.items():
            found[name] = 2 * _ROWS * _WIDTH * _WIDTH / best_seconds(partial(torch.nn.functional.linear, x, w), 5)
        print(json.dumps({"roof": found}), flush=True)


if __name__ == "__main__":
    main()
