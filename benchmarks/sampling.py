"""Time that a token's choice takes, without a model: the sampler in C++ beside its definition in NumPy, which was the sampler before.

usage: python benchmarks/sampling.py [--quick] [--rounds N] [--markdown] [--json FILE]

They choose from the same row in turn, round by round, and must choose the same tokens. Figures are medians of the thread's CPU time, since
others may use the machine; `NumPy is` is the median of the rounds' ratios, and their range. Logits are f32: `model` has a few likely words
before a normal distribution, as a model's do, and a nucleus of tens of words; `flat` is a normal distribution alone, with a nucleus of a
third of the vocabulary, which no trained model gives. `screened` is `model` with -inf for all but 300, as a screened head leaves for top_k.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.runtime import numpy_sampler

from tsrun.output import Output
from tsrun.sampler import Draws, Sampling

P = ParamSpec("P")
R = TypeVar("R")
SAMPLINGS = {
    "greedy": Sampling(),
    "no filter": Sampling(temperature=1.0, seed=1),
    "top_p 0.95": Sampling(temperature=1.0, top_p=0.95, seed=1),
    "top_k 50": Sampling(temperature=1.0, top_k=50, seed=1),
    "top_k 50, top_p 0.95": Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=1),
    "min_p 0.05": Sampling(temperature=1.0, min_p=0.05, seed=1),
}


@dataclass(frozen=True)
class Figure:
    """microseconds of a row, and how many times as long NumPy takes: median, least and most."""

    vocabulary: int
    logits: str
    sampling: str
    ours: float
    numpy: float
    ratio: tuple[float, float, float]


def logits_of(kind: str, vocabulary: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(vocabulary)
    logits = generator.normal(size=vocabulary)
    if kind != "flat":
        logits = logits * 2.5
        logits[generator.integers(0, vocabulary, 40)] += np.linspace(18, 8, 40)
    if kind == "screened":
        logits[logits < np.partition(logits, -300)[-300]] = -np.inf
    return logits.astype(np.float32)


def measure(logits: NDArray[np.float32], sampling: Sampling, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds of both, round by round."""
    rows, sampler = logits[None], [sampling.sampler()]
    output = Output(rows.ctypes.data, "f32", rows.shape)
    ours: list[float] = []
    numpys: list[float] = []
    for position in range(rounds + 1):
        where = np.array([position], dtype=np.int32)
        spent, found = _timed(Draws(sampler, where).choose, 5, output)
        spent_numpy, same = _timed(numpy_sampler.choose, 1, logits, sampling, 1, position)
        if found.tokens[0] != same:
            raise RuntimeError(f"{sampling} at {position}: {found.tokens[0]} and {same}")
        ours.append(spent)
        numpys.append(spent_numpy)
    return ours[1:], numpys[1:]


def _timed(choose: Callable[P, R], times: int, *arguments: P.args, **named: P.kwargs) -> tuple[float, R]:
    """The microseconds that it takes, over some calls, and what it gives."""
    begun = time.thread_time()
    found = [choose(*arguments, **named) for _ in range(times)]
    return (time.thread_time() - begun) / times * 1e6, found[0]


def figures(rounds: int, vocabularies: list[int]) -> list[Figure]:
    found = []
    for vocabulary in vocabularies:
        for kind in ("model", "flat", "screened"):
            logits = logits_of(kind, vocabulary)
            for name, sampling in SAMPLINGS.items():
                if kind == "screened" and sampling.keep == 0:
                    continue
                ours, numpys = measure(logits, sampling, rounds)
                ratios = [theirs / mine for mine, theirs in zip(ours, numpys, strict=True)]
                spread = (statistics.median(ratios), min(ratios), max(ratios))
                found.append(Figure(vocabulary, kind, name, statistics.median(ours), statistics.median(numpys), spread))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller vocabulary, three rounds")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = figures(3, [49_152]) if options.quick else figures(options.rounds, [49_152, 262_144])
    line = "| {:>10} | {:<8} | {:<20} | {:>9} | {:>9} | {:<26} |" if options.markdown else "{:>10} {:<8} {:<20} {:>9} {:>9}  {}"
    print(line.format("vocabulary", "logits", "sampling", "µs a row", "NumPy", "NumPy is"))
    if options.markdown:
        print("|---:|---|---|---:|---:|---|")
    for one in found:
        times = "{:.1f} times ({:.1f} to {:.1f})".format(*one.ratio)
        print(line.format(f"{one.vocabulary:,}", one.logits, one.sampling, f"{one.ours:,.0f}", f"{one.numpy:,.0f}", times))
    if options.json:
        options.json.write_text(json.dumps([vars(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
