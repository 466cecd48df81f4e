"""What the cases of `benchmarks/scheduler.py` measure: a function a kind, which makes the case ready and gives what measures a round.

A round's answer is, by the name of a series, two lists of microseconds: wall, and this thread's CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from scheduler_driver import Driver, Module, Setup

P = ParamSpec("P")
R = TypeVar("R")
Series = dict[str, tuple[list[float], list[float]]]
MARGIN = 64  # pages beyond what a case needs: null pages, and chunks in passing
NEW_TOKENS = 16  # of a request that ends


@dataclass(frozen=True)
class Case:
    """What is measured, and its sizes; a case reads those that it needs."""

    kind: str
    running: int
    context: int
    steps: int  # of a round
    rounds: int
    hybrid: bool = False
    drafts: int = 0
    depth: int = 1
    requests: int = 0  # of a storm; conversations, where each comes again and again; those that wait
    prompt: int = 0
    shared: int = 0  # tokens of the prompt that others have too
    turn: int = 0  # tokens that a conversation grows by from one time to the next

    @property
    def measured(self) -> int:
        return self.steps * self.rounds


class Clock:
    """Both times of a call, by the name of its series."""

    def __init__(self) -> None:
        self.series: Series = {}

    def time(self, name: str, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        wall, cpu = self.series.setdefault(name, ([], []))
        used = time.thread_time()
        begun = time.perf_counter()
        result = function(*arguments, **named)
        spent = time.perf_counter() - begun
        cpu.append((time.thread_time() - used) * 1e6)
        wall.append(spent * 1e6)
        return result


def tokens(count: int, length: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 30000, (count, length), dtype=np.int32)


def planned(driver: Driver) -> Any:
    plan = driver.plan()
    if plan is None:
        raise RuntimeError("nothing can run")
    return plan


def step(driver: Driver, accepted: NDArray[np.int32] | None = None) -> Sequence[int]:
    """What is timed of an engine's step: all but the model."""
    plan = planned(driver)
    return driver.commit(plan, driver.outcome(plan, accepted))


def watched_step(driver: Driver) -> int:
    """A step that is not timed: sequences that got a token."""
    plan = planned(driver)
    outcome = driver.outcome(plan)
    sampled = driver.sampled(outcome)
    driver.commit(plan, outcome)
    return sampled


def pages_of(tokens_each: int, sequences: int, page: int = 64) -> int:
    return (tokens_each // page + 2) * sequences + MARGIN


def decoding(module: Module, case: Case, **changes: Any) -> tuple[Driver, int, list[Any]]:
    """A scheduler whose sequences all decode, the tokens that one may make, and the prompts."""
    # the first to run have decoded while the last still waited; a step may bring drafts + 1 tokens, and one that is measured take two more
    step_tokens = max(case.context, 8192)  # about a prompt a step, so that sequences come to a new page at different steps
    grown = case.context * case.running // step_tokens + case.running // 8 + 3 * case.measured * (1 + case.drafts) + 200
    context = case.context + grown
    sizes = {"running": case.running, "context": context, "pages": pages_of(context, case.running), "step_tokens": step_tokens}
    kind = {"hybrid": case.hybrid, "drafts": case.drafts, "depth": case.depth, "endless": True}
    driver = module.Scheduler(Setup(**{**sizes, **kind, **changes}))
    new_tokens = context - case.context - case.drafts
    prompts = [driver.prompt(row) for row in tokens(case.running, case.context)]
    for request, prompt in enumerate(prompts):
        driver.submit(request, prompt, new_tokens)
    settle(driver, case.running)
    return driver, new_tokens, prompts


def settle(driver: Driver, running: int) -> None:
    while watched_step(driver) < running:
        pass
    for _ in range(10):  # the last prompts' first decodes, and everything warm
        watched_step(driver)
    check(driver, running)


def check(driver: Driver, running: int) -> None:
    """What is measured as a decode of so many is one."""
    sampled = watched_step(driver)
    if sampled != running:
        raise RuntimeError(f"{sampled} of {running} decode")


def warm(act: Callable[[], object]) -> None:
    """Others have used the caches of this core since the last round."""
    for _ in range(3):
        act()


def decode(module: Module, case: Case) -> Callable[[], Series]:
    """Steps in which every sequence decodes, at depth 1."""
    driver, _, _ = decoding(module, case)
    random = np.random.default_rng(1)

    def measure() -> Series:
        clock = Clock()
        counts = random.integers(1, case.drafts + 2, (case.steps, case.running), dtype=np.int32) if case.drafts else [None] * case.steps
        warm(lambda: step(driver))
        for accepted in counts:
            clock.time("step", step, driver, accepted)
        check(driver, case.running)
        return clock.series

    return measure


def overlapped(module: Module, case: Case) -> Callable[[], Series]:
    """The same at depth 2: a step is planned before the one before it is committed."""
    driver, _, _ = decoding(module, case)
    plan = driver.plan()
    under_way = (plan, driver.outcome(plan))

    def ahead() -> None:
        nonlocal under_way
        plan = planned(driver)
        outcome = driver.outcome(plan)
        driver.commit(*under_way)
        under_way = (plan, outcome)

    def measure() -> Series:
        clock = Clock()
        warm(ahead)
        for _ in range(case.steps):
            clock.time("step", ahead)
        return clock.series

    return measure


def admission(module: Module, case: Case) -> Callable[[], Series]:
    """Plans that admit one long prompt, most of it cached, beside the same plan without it."""
    long = pages_of(case.prompt, 1) + pages_of(case.prompt - case.shared, case.measured + 1)
    driver, _, _ = decoding(
        module,
        case,
        running=case.running + 1,
        context=case.prompt + 4096 + case.context,
        pages=pages_of(2 * case.context, case.running) + long,
    )
    shared = tokens(1, case.shared, seed=2)[0]
    own = tokens(case.measured + 1, case.prompt - case.shared, seed=3)
    number = case.running

    def come(prompt: Any, clock: Clock) -> int:
        clock.time("submit", driver.submit, number, prompt, NEW_TOKENS)
        plan = clock.time("plan, admitting", driver.plan)
        cached = driver.cached(plan, number)
        driver.commit(plan, driver.outcome(plan))
        while watched_step(driver) <= case.running:
            pass
        driver.abort([number])
        step(driver)
        return cached

    come(driver.prompt(np.concatenate([shared, own[-1]])), Clock())

    def measure() -> Series:
        nonlocal number
        clock = Clock()
        for _ in range(case.steps):
            plan = clock.time("plan", driver.plan)
            driver.commit(plan, driver.outcome(plan))
            number += 1
            cached = come(driver.prompt(np.concatenate([shared, own[number - case.running - 1]])), clock)
            if cached < case.shared:
                raise RuntimeError(f"{cached} tokens of {case.shared} were found in the cache")
        return clock.series

    return measure


def hashing(module: Module, case: Case) -> Callable[[], Series]:
    """Submits of a long prompt, with the prefix cache and without."""
    sizes = Setup(running=case.running, context=case.prompt + NEW_TOKENS, pages=pages_of(case.prompt, 2))
    drivers = {"submit": module.Scheduler(sizes), "submit, no cache": module.Scheduler(Setup(**{**vars(sizes), "prefix_cache": False}))}
    prompts = tokens(8, case.prompt)
    number = 0

    def measure() -> Series:
        nonlocal number
        clock = Clock()
        for _ in range(case.steps):
            for name, driver in drivers.items():
                prompt = driver.prompt(prompts[number % len(prompts)])
                clock.time(name, driver.submit, number, prompt, NEW_TOKENS)
                driver.abort([number])
            number += 1
        return clock.series

    return measure


def abort(module: Module, case: Case) -> Callable[[], Series]:
    """Aborts of a decoding request; another takes its place, not timed."""
    driver, new_tokens, prompts = decoding(module, case)
    numbers = list(range(case.running))
    random = np.random.default_rng(1)

    def measure() -> Series:
        clock = Clock()
        for _ in range(case.steps):
            row = int(random.integers(case.running))
            clock.time("abort", driver.abort, [numbers[row]])
            numbers[row] = max(numbers) + 1
            driver.submit(numbers[row], prompts[row], new_tokens)
            while watched_step(driver) < case.running:
                pass
        return clock.series

    return measure


def waiting(module: Module, case: Case) -> Callable[[], Series]:
    """Decode steps while others wait for a place, beside steps of a scheduler where none does."""
    drivers = {"step": decoding(module, case)[0], "step, others wait": decoding(module, case)[0]}
    for number, row in enumerate(tokens(case.requests, case.prompt, seed=2)):
        drivers["step, others wait"].submit(case.running + number, drivers["step"].prompt(row), NEW_TOKENS)
    for driver in drivers.values():
        step(driver)

    def measure() -> Series:
        clock = Clock()
        warm(lambda: [step(driver) for driver in drivers.values()])
        for _ in range(case.steps):
            for name, driver in drivers.items():
                clock.time(name, step, driver)
        for driver in drivers.values():
            check(driver, case.running)
        return clock.series

    return measure


def admission_storm(module: Module, case: Case) -> Callable[[], Series]:
    """Requests that all come at once, three in five of them with one of ten shared prefixes, until the last has its tokens."""
    prefixes = tokens(10, case.shared, seed=2)
    prompts = tokens(case.requests, case.prompt)
    for number in range(case.requests):
        if number % 5 < 3:
            prompts[number, : case.shared] = prefixes[number % len(prefixes)]
    setup = Setup(case.running, case.prompt + NEW_TOKENS, pages_of(case.prompt + NEW_TOKENS, case.requests))

    def measure() -> Series:
        driver, clock, ended = module.Scheduler(setup), Clock(), 0
        for number, prompt in enumerate([driver.prompt(row) for row in prompts]):
            clock.time("submit", driver.submit, number, prompt, NEW_TOKENS)
        while ended < case.requests:
            ended += len(clock.time("step", step, driver))
        return clock.series

    return measure


def eviction_storm(module: Module, case: Case) -> Callable[[], Series]:
    """Conversations that take turns where a quarter of their pages fit: whoever comes finds its own pages evicted, and evicts others'."""
    last = case.prompt + (case.rounds + 1) * case.turn
    driver = module.Scheduler(Setup(case.running, last + NEW_TOKENS, pages_of(last, case.requests) // 4))
    texts = tokens(case.requests, last)
    number = turn = 0

    def measure() -> Series:
        nonlocal number, turn
        clock, ended = Clock(), 0
        length = case.prompt + turn * case.turn
        prompts = [driver.prompt(row[:length]) for row in texts]
        turn += 1
        for come, prompt in enumerate(prompts):
            while come - ended == case.running:
                ended += len(clock.time("step", step, driver))
            clock.time("submit", driver.submit, number, prompt, NEW_TOKENS)
            number += 1
        while ended < case.requests:
            ended += len(clock.time("step", step, driver))
        return clock.series

    measure()  # fills the pool
    return measure


def cancels(module: Module, case: Case) -> Callable[[], Series]:
    """Steps before each of which a tenth of the running are aborted and as many come; all of it is the step's time."""
    driver, new_tokens, _ = decoding(module, case)
    numbers = list(range(case.running))
    random = np.random.default_rng(1)
    some = max(case.running // 10, 1)

    def replacing(leaving: list[int], coming: list[tuple[int, Any]]) -> None:
        driver.abort(leaving)
        for number, prompt in coming:
            driver.submit(number, prompt, new_tokens)
        step(driver)

    def measure() -> Series:
        clock = Clock()
        for _ in range(case.steps):
            following = max(numbers) + 1
            prompts = [driver.prompt(row) for row in tokens(some, case.prompt, seed=following)]
            rows = random.choice(case.running, some, replace=False).tolist()
            leaving = [numbers[row] for row in rows]
            for row, number in zip(rows, range(following, following + some), strict=True):
                numbers[row] = number
            clock.time("step", replacing, leaving, list(zip(range(following, following + some), prompts, strict=True)))
        return clock.series

    return measure


KINDS: Mapping[str, Callable[[Module, Case], Callable[[], Series]]] = {
    "decode": decode,
    "overlapped": overlapped,
    "admission": admission,
    "hashing": hashing,
    "abort": abort,
    "waiting": waiting,
    "admission storm": admission_storm,
    "eviction storm": eviction_storm,
    "cancels": cancels,
}
