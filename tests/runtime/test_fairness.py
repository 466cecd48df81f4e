"""A heavy user must not make light ones wait: their times to first token with and without it, in simulated time.

The device is a model of an accelerator: a step takes a fixed time, and more for each row and for each token that attention reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from tsrun._core import Scheduler

LIGHT_USERS = 10
HEAVY = 99
SECONDS = 120.0


@dataclass(frozen=True)
class Arrival:
    at: float
    user: int
    prompt: int
    answer: int


def step_seconds(rows: int, read: int) -> float:
    return 0.008 + 20e-6 * rows + 10e-9 * read


def light(random: Generator) -> list[Arrival]:
    """Each light user asks every few seconds: prompts of up to 2,000 tokens, answers of a hundred."""
    arrivals = []
    for user in range(LIGHT_USERS):
        at = float(random.uniform(0, 5))
        while at < SECONDS:
            arrivals.append(Arrival(at, user, int(random.integers(300, 2000)), int(random.integers(50, 150))))
            at += float(random.exponential(6))
    return arrivals


def heavy(random: Generator) -> list[Arrival]:
    """One user asks for 400 long things at once, and for more all the time."""
    burst = [Arrival(0.0, HEAVY, int(random.integers(4000, 30000)), int(random.integers(200, 1500))) for _ in range(400)]
    return burst + [Arrival(float(t), HEAVY, int(random.integers(4000, 30000)), 800) for t in np.arange(1, SECONDS, 0.5)]


def first_tokens(arrivals: list[Arrival], **options: Any) -> tuple[dict[int, list[float]], int]:
    """Seconds to the first token of each user's requests, and the tokens made for the heavy one."""
    core = Scheduler(
        num_pages=16384, page_size=64, max_sequences=64, max_step_tokens=2048, max_context=40000, depth=1, prefix_cache=True, **options
    )
    random = np.random.default_rng(1)
    waiting = sorted(arrivals, key=lambda arrival: arrival.at)
    came: dict[int, Arrival] = {}
    first: dict[int, list[float]] = {}
    seen: set[int] = set()
    now, made = 0.0, 0
    while now < SECONDS:
        while waiting and waiting[0].at <= now:
            arrival = waiting.pop(0)
            came[len(came)] = arrival
            tokens = random.integers(0, 100000, arrival.prompt, dtype=np.int32)
            core.submit(len(came) - 1, tokens, arrival.answer, user=arrival.user, now=now)
        plan = core.plan(now)
        if plan is None:
            now = waiting[0].at if waiting else SECONDS
            continue
        requests, samples = plan.requests.tolist(), plan.samples.tolist()
        now += step_seconds(len(plan.ids), int(plan.lengths.sum()))
        core.commit(plan.step, np.zeros(len(requests), dtype=np.int32), now=now)
        for request, sampled in zip(requests, samples, strict=True):
            made += sampled and came[request].user == HEAVY
            if sampled and request not in seen:
                seen.add(request)
                first.setdefault(came[request].user, []).append(now - came[request].at)
    # Who still waits counts with what it has waited.
    for request, arrival in came.items():
        if request not in seen:
            first.setdefault(arrival.user, []).append(SECONDS - arrival.at)
    return first, made


def p99(first: dict[int, list[float]]) -> float:
    return float(np.percentile([t for user, times in first.items() if user != HEAVY for t in times], 99))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_light_users_wait_at_most_twice_as_long_beside_a_heavy_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    few, many = light(random), heavy(random)
    alone, _ = first_tokens(few)
    beside, made = first_tokens(few + many)
    together, _ = first_tokens([Arrival(a.at, 0, a.prompt, a.answer) for a in few + many])
    print(f"p99 to first token: alone {p99(alone):.3f} s, beside a heavy user {p99(beside):.3f} s; {made:,} tokens for the heavy one")
    assert sum(len(times) for user, times in beside.items() if user != HEAVY) == len(few)
    assert p99(beside) <= 2 * p99(alone)
    assert made > 5000, "and the heavy user has the rest of the device"
    assert p99(together) > 10 * p99(alone), "as one user the same requests wait for each other"
