"""What a context costs by how its keys and values are stored: its memory, and tokens a second after it, of one sequence.

usage: python benchmarks/cache.py FIRST.tsa OTHER.tsa... [--context 8192] [--tokens 16] [--rounds 7] [--threads 2]

Compile the same checkpoint with `--cache dtype` and with `--cache int8`. Each artifact first computes a context of so many tokens, then
they take turns at decoding: a round is `--tokens` steps of each, and others are compared with the first within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from cpu_profile import step_of

from tsrun.artifact import PROGRAM, open_artifact
from tsrun.executor import Executor
from tsrun.limits import Limits, row_bytes
from tsrun.program import read_program

CHUNK = 512


@dataclass
class Contender:
    """An artifact whose caches hold `context` tokens; rates: tokens a second, by round."""

    path: Path
    context: int
    tokens: int
    threads: int
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        artifact = open_artifact(self.path)
        program = read_program(artifact.file(PROGRAM))
        self.row_bytes = row_bytes((cache.dtype, cache.page, cache.window) for cache in program.caches)
        pages = -(-(self.context + self.tokens) // 16)
        limits = Limits(16, pages, 1, CHUNK, pages * 16, tuple((window, pages) for window in program.windows))
        self._groups = len(limits.pages)
        self._executor = Executor(artifact, program, 0, limits, self.threads)
        for first in range(0, self.context, CHUNK):
            self._executor.run(step_of(min(CHUNK, self.context - first), first, self._groups))

    @property
    def context_bytes(self) -> int:
        """Of what the context's tokens still see."""
        return sum(size * min(window or self.context, self.context) for window, size in self.row_bytes.items())

    def decode(self) -> None:
        steps = [step_of(1, self.context + token, self._groups) for token in range(self.tokens)]
        begin = time.perf_counter()
        for step in steps:
            self._executor.run(step)
        self.rates.append(self.tokens / (time.perf_counter() - begin))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    for name, value in (("context", 8192), ("tokens", 16), ("rounds", 7), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    contenders = [Contender(path, given.context, given.tokens, given.threads) for path in given.artifacts]
    for _ in range(given.rounds):
        for contender in contenders:
            contender.decode()
    print("| artifact | bytes a token | a context of it, MiB | tokens/s | of the first |\n| --- | ---: | ---: | ---: | ---: |")
    for contender in contenders:
        times = [own / first for own, first in zip(contender.rates, contenders[0].rates, strict=True)]
        print(
            f"| {contender.path.stem} | {sum(contender.row_bytes.values()):,} | {contender.context_bytes / 2**20:.1f} | "
            f"{statistics.median(contender.rates):.1f} | {statistics.median(times):.2f}x ({min(times):.2f}-{max(times):.2f}) |"
        )


if __name__ == "__main__":
    main()
