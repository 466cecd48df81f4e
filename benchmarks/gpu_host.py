"""What a step of a program for GPUs costs the host: `python benchmarks/gpu_host.py NAME.tsa [--profile]`, on a machine without a GPU.

The engine runs the artifact on a device that only takes note of what it is asked for, so that all time is the host's: scheduling,
inputs, what is prepared for kernels, sampled tokens and their events. What a driver takes for a copy, a graph and an event comes on top.
Every token is 0.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.gpu.device import Bytes, Device, Grid, Handle, Value
from tsrun.gpu.kernels_file import Function
from tsrun.limits import LimitOptions


class SilentDevice(Device):
    """Has memory, and does nothing in it. asked: how often it was asked for what."""

    architecture = "sm_90a"
    multiprocessors = 132
    free_bytes = 1 << 32

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield

    def memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def upload(self, source: Bytes) -> Tensor:
        return torch.from_numpy(source.copy())

    def pinned(self, num_bytes: int) -> Bytes:
        return np.zeros(num_bytes, np.uint8)

    def load(self, function: Function, code: bytes) -> Handle:
        return function

    def copy_in(self, target: Tensor, source: Bytes) -> None:
        self.asked["copy_in"] += 1

    def copy_out(self, target: Bytes, source: Tensor) -> None:
        self.asked["copy_out"] += 1

    def launch(self, function: Handle, grid: Grid, arguments: Sequence[Value]) -> None:
        self.asked["launch"] += 1

    def call(self, kernel: Callable[[], object]) -> None:
        self.asked["call"] += 1

    def record(self, work: Callable[[], None]) -> Handle:
        self.asked["record"] += 1
        return work

    def replay(self, recorded: Handle) -> None:
        self.asked["replay"] += 1

    def mark(self) -> Handle:
        self.asked["mark"] += 1
        return self.asked

    def wait(self, mark: Handle) -> None:
        self.asked["wait"] += 1


def steps(path: Path, sequences: int, context: int, count: int, device: SilentDevice, profile: cProfile.Profile | None) -> list[float]:
    """Microseconds of each of so many steps, of sequences that all decode."""
    limits = LimitOptions(max_sequences=sequences, max_context=context + count + 64, speculate="off", prefix_cache=False)
    times = []
    with mock.patch("tsrun.ranks.device_for", return_value=device), Engine(path, limits) as engine:
        for n in range(sequences):
            engine.submit(GenerationRequest([1 + (n + k) % 100 for k in range(context)], count + 40, ignore_eos=True))
        while sum(len(event.token_ids) for event in engine.step()) < sequences:  # prompts
            pass
        for _ in range(16):
            engine.step()
        device.asked.clear()
        if profile is not None:
            profile.enable()
        for _ in range(count):
            began = time.perf_counter()
            engine.step()
            times.append((time.perf_counter() - began) * 1e6)
        if profile is not None:
            profile.disable()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--profile", action="store_true", help="also print which functions the time goes to")
    options = parser.parse_args()
    print(f"{'sequences':>9} {'us a step':>9} {'p10':>7} {'p90':>7}  asked a step")
    for sequences in options.sequences:
        device, profile = SilentDevice(), cProfile.Profile() if options.profile else None
        times = steps(options.artifact, sequences, options.context, options.steps, device, profile)
        tenths = statistics.quantiles(times, n=10)
        asked = ", ".join(f"{name} {number / len(times):.2g}" for name, number in sorted(device.asked.items()))
        print(f"{sequences:>9} {statistics.median(times):>9.0f} {tenths[0]:>7.0f} {tenths[-1]:>7.0f}  {asked}")
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
