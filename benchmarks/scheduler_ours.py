"""The scheduler of tsrun, driven as `tsrun.engine` drives it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed

import numpy as np
from numpy.typing import NDArray
from scheduler_driver import TOKEN, WINDOW, Setup

from tsrun import _core

SECONDS_PER_STEP = 0.01  # of the clock that the scheduler is told, which ages waiting requests

type_of_outcome = tuple[NDArray[np.int32], NDArray[np.int32] | None, NDArray[np.bool_]]


def version() -> str:
    return installed("tsc-llm")


class Scheduler:
    def __init__(self, setup: Setup) -> None:
        # a prompt's chunk passes through the window group as a whole, and each sequence keeps a state beside its snapshots
        states = setup.running * (setup.context // WINDOW + 3) + 1
        self.core = _core.Scheduler(
            num_pages=setup.pages,
            page_size=setup.page,
            max_sequences=setup.running,
            max_step_tokens=setup.step_tokens,
            max_context=setup.context,
            windows=[(WINDOW, setup.pages)] if setup.hybrid else [],
            states=[(WINDOW, states)] if setup.hybrid else [],
            depth=setup.depth,
            prefix_cache=setup.prefix_cache,
        )
        self.drafts = setup.drafts
        self.now = 0.0

    def prompt(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.ascontiguousarray(tokens, dtype=np.int32)

    def submit(self, request: int, prompt: NDArray[np.int32], new_tokens: int) -> None:
        self.core.submit(request, prompt, new_tokens, device_drafts=self.drafts, now=self.now)

    def plan(self) -> _core.StepPlan | None:
        self.now += SECONDS_PER_STEP
        return self.core.plan(self.now)

    def outcome(self, plan: _core.StepPlan, accepted: NDArray[np.int32] | None = None) -> type_of_outcome:
        _ = plan.requests, plan.ids, plan.positions, plan.slots, plan.spans, plan.lengths, plan.last
        _ = plan.follows, plan.table_rows, plan.table_updates, plan.copies
        samples = plan.samples
        if accepted is None:
            return np.full(len(samples), TOKEN, np.int32), None, samples
        counts = np.where(samples, accepted[: len(samples)], 0).astype(np.int32, copy=False)
        return np.full(int(counts.sum()), TOKEN, np.int32), counts, samples

    def commit(self, plan: _core.StepPlan, outcome: type_of_outcome) -> Sequence[int]:
        tokens, counts, _ = outcome
        self.core.commit(plan.step, tokens, counts, now=self.now)
        return [request for request, _ in self.core.ended()]

    def abort(self, requests: Sequence[int]) -> None:
        for request in requests:
            self.core.abort(request)

    def sampled(self, outcome: type_of_outcome) -> int:
        return int(outcome[2].sum())

    def cached(self, plan: _core.StepPlan, request: int) -> int:
        return self.core.cached_tokens(request)
