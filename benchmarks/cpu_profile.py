"""Where the time of a step goes: milliseconds by kernel, of a program whose kernels are all in C++.

usage: python benchmarks/cpu_profile.py NAME.tsa [--tokens 1] [--context 128] [--threads 2] [--repeat 20]

One sequence with `--tokens` new ones after `--context`; the median of the repetitions, with the waits before each kernel.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np

from tsrun.artifact import PROGRAM, open_artifact
from tsrun.executor import Executor
from tsrun.limits import Limits
from tsrun.program import read_program
from tsrun.simd_program import SimdPrograms
from tsrun.step import Step


def step_of(tokens: int, context: int, num_groups: int) -> Step:
    """The last tokens of one sequence, whose pages are those of the caches, in order."""
    positions = np.arange(context, context + tokens, dtype=np.int32)
    pages = np.arange(-(-(context + tokens) // 16), dtype=np.int32)
    updates = [np.stack((np.full_like(pages, g), np.zeros_like(pages), pages, pages), axis=1) for g in range(num_groups)]
    one, none = np.ones(1, dtype=np.int32), np.zeros(1, dtype=np.int32)
    return Step(
        *(positions % 1000 + 5, positions, np.tile(positions, (num_groups, 1)), np.array([[0, tokens]], dtype=np.int32)),
        *(one * (context + tokens), one * (tokens - 1), one, none, np.concatenate(updates)),
        copies=np.zeros((0, 3), dtype=np.int32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    for name, value in (("tokens", 1), ("context", 128), ("threads", 2), ("repeat", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    artifact = open_artifact(given.artifact)
    program = read_program(artifact.file(PROGRAM))
    pages = -(-(given.context + given.tokens) // 16)
    windows = tuple((window, pages) for window in program.windows)
    limits = Limits(16, pages, 1, given.tokens, pages * 16, windows, num_states=1 if program.states else 0)
    executor = Executor(artifact, program, 0, limits, given.threads)
    if not isinstance(executor.programs, SimdPrograms):
        raise SystemExit(f"{given.artifact}: some of its kernels are torch's; compile it for one rank and --target cpu")
    step = step_of(given.tokens, given.context, limits.num_groups)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(given.repeat):
        executor.run(step)
        for kernel, seconds in executor.measure(step).items():
            found[kernel].append(seconds)
    medians = {kernel: 1e3 * statistics.median(seconds) for kernel, seconds in found.items()}
    for kernel, milliseconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{kernel:20} {milliseconds:9.3f} ms")
    print(f"{'all':20} {sum(medians.values()):9.3f} ms")


if __name__ == "__main__":
    main()
