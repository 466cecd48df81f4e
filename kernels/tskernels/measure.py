"""Measure kernels against each other: in turns, on operands as a step has them, with the threads of a rank.

C++ kernels run in programs, as a step does it; the others are called one by one, as a step without a program of its own replays them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tskernels.registry import REFERENCE, Call, Kernel, lookup
from tskernels.samples import Samples, coordinates, given, of_step
from tskernels.simd import TABLE
from tskernels.target import Target

if TYPE_CHECKING:
    from tskernels import _cpu

FEWEST_ROUNDS: Final = 5
MOST_ROUNDS: Final = 25
ENOUGH_SECONDS: Final = 0.25
"""Of timed runs of one contender: more rounds would tell no more."""
CLEARLY: Final = 1.25
"""A contender whose best round takes so many times what the winner takes has lost."""
MOST_SECONDS: Final = 0.4
"""Of a contest for each contender, where others use the cores so that it takes longer than it should."""
RUN_SECONDS: Final = 2e-3
"""Of what is timed at once: well above what starting it takes."""
REST_SECONDS: Final = 3e-3
"""For the threads of one contender to stop waiting for more, before another's need the cores."""
LONGEST_SECONDS: Final = 1.0
"""Predicted, of one call: steps that take longer are left out. A head, for one, has a row a sequence, and no step has so many."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A kernel that can run a call."""

    call: Call
    kernel: Kernel


@dataclass(slots=True)
class _Entrant:
    """runs: each makes so many calls on operands that the runs before it have left alone; seconds: of a call, by round."""

    runs: Sequence[Callable[[], object]]
    calls: int
    turn: int = 0
    seconds: list[float] = field(default_factory=list)

    def run(self) -> float:
        """The next run's seconds."""
        run = self.runs[self.turn % len(self.runs)]
        self.turn += 1
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    @property
    def taken(self) -> float:
        """Seconds of a call: the lower quartile of the rounds, since whoever else uses the machine only ever makes them longer."""
        return statistics.quantiles(self.seconds, n=4)[0]

    def round(self) -> None:
        time.sleep(REST_SECONDS)
        self.run()  # wakes the threads
        self.seconds.append(self.run() / self.calls)


def step_sizes(call: Call, tokens: Sequence[int], target: Target) -> Sequence[int]:
    """The sizes of steps, in rising order, that a call in rows is measured at."""
    cost = lookup(call.op, REFERENCE).cost
    first, *others = sorted(set(tokens))
    return [first, *(n for n in others if cost(of_step(call, n), target) <= LONGEST_SECONDS)]


def measure(contenders: Sequence[Contender], tokens: int, samples: Samples, threads: int, target: Target) -> Sequence[float]:
    """Seconds of a call of each, in a step of so many tokens."""
    with _threads(threads), torch.inference_mode():
        entrants = [_entrant(contender, tokens, samples, threads, target) for contender in contenders]
        running, end = entrants, time.perf_counter() + MOST_SECONDS * len(entrants)
        for number in range(1, MOST_ROUNDS + 1):
            for entrant in running:
                entrant.round()
            if number < FEWEST_ROUNDS:
                continue
            best = min(e.taken for e in running)
            running = [e for e in running if min(e.seconds) <= CLEARLY * best and sum(e.seconds) * e.calls < ENOUGH_SECONDS]
            if len(running) < min(2, len(entrants)) or time.perf_counter() > end:
                break
    return [entrant.taken for entrant in entrants]


def _entrant(contender: Contender, tokens: int, samples: Samples, threads: int, target: Target) -> _Entrant:
    call, kernel = contender.call, contender.kernel
    made = list(samples.calls(call, tokens))
    bind = _native_run if (call.op, kernel.name) in TABLE else _replayed_run

    def of(count: int) -> _Entrant:
        repeated = made * ceil(count / len(made))
        parts = [repeated[first : first + count] for first in range(0, len(repeated) - count + 1, count)]
        return _Entrant([bind(call, kernel, part, threads) for part in parts], count)

    predicted = max(lookup(call.op, REFERENCE).cost(of_step(call, tokens), target), 1e-6)
    entrant = of(ceil(RUN_SECONDS / predicted))
    taken = entrant.run() / RUN_SECONDS  # the first run touches some memory for the first time, and so takes no less than others
    return entrant if taken <= 2 else of(max(1, int(entrant.calls / taken)))


Calls = Sequence[tuple[Sequence[Tensor], Tensor]]


def _native_run(call: Call, kernel: Kernel, calls: Calls, threads: int) -> Callable[[], object]:
    from tskernels.simd_kernels import program

    constants = kernel.constants(call) if kernel.constants is not None else ()
    made, team = program(TABLE[call.op, kernel.name], calls, given(call), constants), _team(threads)

    def run(operands: Calls = calls) -> None:  # which the program knows only the addresses of
        made.run(team, 0, 0, 0)

    return run


def _replayed_run(call: Call, kernel: Kernel, calls: Calls, threads: int) -> Callable[[], object]:
    numbers = coordinates(call)
    constants = {"constants": kernel.constants(call)} if kernel.constants is not None else {}

    def run() -> None:
        for operands, out in calls:
            result = {} if kernel.kind == "inplace" else {"out": out}
            kernel.function(*operands, *numbers, **call.attributes, **constants, **result)

    return run


@cache
def _team(threads: int) -> _cpu.Team:
    from tskernels import _cpu

    return _cpu.Team(threads)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
