"""Collectives of ranks on one host: through shared memory, as a program in C++ runs them, beside gloo, as one of torch's kernels does.

usage: python benchmarks/collectives.py [--ranks 2] [--threads 1] [--rounds 9] [--op all_reduce]

Each round runs both, in turns, on bf16 of each size; a line gives the median over rounds of microseconds a call, of rank 0, and of the
ratio, with its range. Bandwidth is of the operand. Where other things run, start it with `chrt -f 10`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tskernels import _cpu, gloo
from tskernels.communicator import AxisCommunicator
from tskernels.shared_memory import SharedMemory
from tskernels.simd import SIMD, TABLE
from tskernels.simd_kernels import operand

SIZES = [1 << shift for shift in range(10, 23, 2)]
CALLS = 20  # in a measurement
ATTRIBUTES: dict[str, dict[str, object]] = {
    "all_reduce": {"reduction": "sum"},
    "all_gather": {"dim": 0},
    "reduce_scatter": {"dim": 0},
    "all_to_all": {"split_dim": 0, "concat_dim": 0},
}


def result_of(op: str, x: Tensor, ranks: int) -> Tensor:
    rows = {"all_gather": x.shape[0] * ranks, "reduce_scatter": x.shape[0] // ranks}.get(op, x.shape[0])
    return torch.empty(rows, *x.shape[1:], dtype=x.dtype)


def in_program(op: str, x: Tensor, out: Tensor, memory: SharedMemory, team: _cpu.Team) -> Callable[[], None]:
    kernel = TABLE[f"ts::{op}", SIMD]
    program = _cpu.Program(_cpu.Arena(), 0, 0)
    for _ in range(CALLS):
        program.add(kernel.symbol, [operand(x)], operand(out), kernel.numbers(ATTRIBUTES[op]), [], memory.group("tp"))
    return lambda: program.run(team, 1, 1, 1)


def over_gloo(op: str, x: Tensor, out: Tensor, axis: AxisCommunicator) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            out.copy_(getattr(axis, op)(x, **ATTRIBUTES[op]))

    return run


def microseconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - begin) / CALLS


def measure(rank: int, given: argparse.Namespace, folder: str) -> list[tuple[int, list[float], list[float]]]:
    torch.set_num_threads(given.threads)
    mesh = gloo.connect({"tp": given.ranks}, rank, f"file://{folder}/meeting")
    axis, name = mesh.axis("tp"), f"/tsrun-benchmark-{Path(folder).name}"

    def joined() -> SharedMemory:
        return SharedMemory({"tp": given.ranks}, rank, ["tp"], name, threads=given.threads, timeout_seconds=60)

    memory = joined() if rank == 0 else None
    axis.all_reduce(torch.ones(1), "sum")  # the others open what is there
    memory = memory or joined()
    axis.all_reduce(torch.ones(1), "sum")
    if rank == 0:
        memory.unlink()
    team = _cpu.Team(given.threads, spins=memory.spins)
    found = []
    for size in SIZES:
        x = torch.randn(8, size // 16).to(torch.bfloat16)
        ours, theirs = (result_of(given.op, x, given.ranks) for _ in range(2))
        runs = in_program(given.op, x, ours, memory, team), over_gloo(given.op, x, theirs, axis)
        for run in runs:
            run()
        assert torch.equal(ours, theirs)
        rounds = [(microseconds(runs[0]), microseconds(runs[1])) for _ in range(given.rounds)]
        found.append((size, [a for a, _ in rounds], [b for _, b in rounds]))
    gloo.disconnect()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("ranks", 2), ("threads", 1), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--op", choices=ATTRIBUTES, default="all_reduce")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)  # how it starts itself
    given = parser.parse_args()
    if given.as_rank:
        rank, folder = json.loads(given.as_rank)
        measure(rank, given, folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--as-rank"]
        others = [subprocess.Popen([*command, json.dumps([rank, folder])]) for rank in range(1, given.ranks)]
        try:
            found = measure(0, given, folder)
        finally:
            for other in others:
                other.wait(60)
    print(f"| {given.op}, {given.ranks} ranks, {given.threads} threads each | shared memory, us | GB/s | gloo, us | times as fast |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for size, ours, theirs in found:
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        mine = statistics.median(ours)
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
        print(f"| {size // 1024} KiB | {mine:.1f} | {size / mine / 1e3:.2f} | {statistics.median(theirs):.1f} | {spread} |")


if __name__ == "__main__":
    main()
