"""The scheduler, seen from Python: what it refuses, how its arrays live, and what each call does. Any traffic: test_scheduler_traffic."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tsrun._core import Scheduler, StepPlan


def scheduler(
    *,
    num_pages: int = 16,
    page_size: int = 4,
    max_sequences: int = 4,
    max_step_tokens: int = 8,
    max_context: int = 32,
    **options: Any,
) -> Scheduler:
    return Scheduler(
        num_pages=num_pages,
        page_size=page_size,
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        max_context=max_context,
        **options,
    )


def tokens(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def planned(core: Scheduler) -> StepPlan:
    plan = core.plan()
    assert plan is not None
    return plan


def test_a_step_is_flat_arrays_of_exact_types() -> None:
    core = scheduler()
    core.submit(7, tokens(1, 2, 3), 2)
    core.submit(8, tokens(4, 5, 6, 7, 8, 9), 2)
    plan = planned(core)
    assert plan.step == 0
    assert plan.requests.tolist() == [7, 8]
    assert plan.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert plan.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert plan.slots.tolist() == [[0, 1, 2, 4, 5, 6, 7, 8]]
    assert plan.spans.tolist() == [[0, 3], [3, 8]]
    assert plan.lengths.tolist() == [3, 5]
    assert plan.last.tolist() == [2, 7]
    assert plan.table_rows.tolist() == [0, 1]
    assert plan.table_updates.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 2]]
    assert plan.follows.tolist() == [-1, -1]
    assert plan.copies.shape == (0, 3)
    assert plan.samples.tolist() == [True, False]
    assert plan.requests.dtype == np.int64
    assert plan.samples.dtype == np.bool_
    for array in (plan.ids, plan.positions, plan.slots, plan.spans, plan.lengths, plan.last, plan.table_rows, plan.table_updates):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


@pytest.mark.parametrize(("prompt", "padded"), [(1, 1), (3, 3), (4, 4), (5, 8)])
def test_a_step_is_padded_for_the_plan_of_its_own_size(prompt: int, padded: int) -> None:
    """It was chosen by the padded size: one token came to four, and the plan for fewer never ran."""
    core = scheduler(paddings=[(1, 1), (4, 4)])
    core.submit(0, tokens(*range(prompt)), 2)
    assert len(planned(core).ids) == padded


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "why"),
    [
        ([], 1, "request 1: the prompt is empty"),
        ([5], 0, "request 1: max_new_tokens must be at least 1, got 0"),
        ([5] * 30, 3, "request 1: prompt and new tokens make 33, max_context is 32"),
        ([5] * 10, 8, "request 1: needs 5 pages, the pool has 4"),
    ],
)
def test_a_request_that_can_never_run_is_refused_with_the_reason(prompt: list[int], max_new_tokens: int, why: str) -> None:
    core = scheduler(num_pages=4)
    with pytest.raises(ValueError, match=f"^{why}$"):
        core.submit(1, tokens(*prompt), max_new_tokens)
    assert core.num_waiting == 0


def test_the_last_token_needs_no_page() -> None:
    core = scheduler(num_pages=4)
    core.submit(1, tokens(*range(10)), 7)
    finished = run_to_the_end(core)
    assert finished == {1: 7}


def test_an_id_is_refused_until_its_request_ends() -> None:
    core = scheduler()
    core.submit(1, tokens(5), 1)
    with pytest.raises(ValueError, match=r"^request 1: already submitted and not yet ended$"):
        core.submit(1, tokens(5), 1)
    run_to_the_end(core)
    core.submit(1, tokens(5), 1)


def test_tokens_of_another_type_or_shape_are_refused() -> None:
    core = scheduler()
    with pytest.raises(TypeError):
        core.submit(1, np.array([5], dtype=np.int64), 1)
    with pytest.raises(ValueError, match=r"^prompt must have one dimension$"):
        core.submit(1, np.zeros((1, 1), dtype=np.int32), 1)


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^page_size must be at least 1, got 0$"):
        scheduler(page_size=0)


def test_calls_out_of_order_are_errors() -> None:
    core = scheduler()
    with pytest.raises(RuntimeError, match=r"^step 0 is not under way: no step is$"):
        core.commit(0, tokens())
    core.submit(1, tokens(5), 2)
    plan = planned(core)
    with pytest.raises(RuntimeError, match=r"^plan while step 0 is not committed$"):
        core.plan()
    with pytest.raises(RuntimeError, match=r"^finish of request 1, which has made no token; abort ends it$"):
        core.finish(1)
    with pytest.raises(RuntimeError, match=r"^step 3 is not under way: step 0 is$"):
        core.commit(3, tokens(5))
    with pytest.raises(RuntimeError, match=r"^commit of step 0 needs 1 tokens, one a sequence, got 2$"):
        core.commit(0, tokens(5, 5))
    core.commit(plan.step, tokens(5))
    core.finish(1)
    assert core.plan() is None


def test_a_waiting_request_cannot_finish() -> None:
    core = scheduler()
    core.submit(1, tokens(5), 2)
    with pytest.raises(RuntimeError, match="has made no token; abort ends it"):
        core.finish(1)


def test_the_end_of_an_ended_request_is_no_error() -> None:
    core = scheduler()
    core.submit(1, tokens(5), 1)
    run_to_the_end(core)
    core.finish(1)
    core.abort(1)


def test_the_arrays_are_the_schedulers_memory() -> None:
    core = scheduler()
    core.submit(1, tokens(5, 6), 3)
    plan = planned(core)
    address = plan.ids.ctypes.data
    assert plan.ids.ctypes.data == address
    core.commit(plan.step, tokens(7))
    core.commit(planned(core).step, tokens(8))
    assert planned(core).ids.ctypes.data == address, "steps take turns in memory for two"


def test_an_array_keeps_its_memory_alive() -> None:
    core = scheduler()
    core.submit(1, tokens(5, 6), 3)
    ids = planned(core).ids
    del core
    gc.collect()
    assert ids.tolist() == [5, 6]


def test_a_committed_plan_refuses_to_show_its_arrays() -> None:
    core = scheduler()
    core.submit(1, tokens(5), 2)
    plan = planned(core)
    core.commit(plan.step, tokens(6))
    assert plan.step == 0
    with pytest.raises(RuntimeError, match=r"^step 0 is not under way: no step is$"):
        _ = plan.ids
    planned(core)
    with pytest.raises(RuntimeError, match=r"^step 0 is not under way: step 1 is$"):
        _ = plan.slots


def test_an_abort_during_a_step_returns_the_pages_at_its_commit() -> None:
    core = scheduler()
    core.submit(1, tokens(5), 2)
    plan = planned(core)
    core.abort(1)
    assert core.num_running == 0
    assert core.num_free_pages == 15
    core.commit(plan.step, tokens(6))
    assert core.num_free_pages == 16
    assert core.plan() is None


def run_to_the_end(core: Scheduler) -> dict[int, int]:
    """Commit steps until nothing is left; how many tokens each request made."""
    made: dict[int, int] = {}
    while (plan := core.plan()) is not None:
        for request, samples in zip(plan.requests.tolist(), plan.samples.tolist(), strict=True):
            made[request] = made.get(request, 0) + samples
        core.commit(plan.step, np.zeros(len(plan.requests), dtype=np.int32))
    return made


def test_what_runs_is_told_with_how_far_it_is() -> None:
    core = scheduler(max_sequences=2)
    for request in (7, 8, 9):
        core.submit(request, tokens(*range(request, request + 6)), 2)
    assert core.running() == []
    plan = planned(core)
    assert core.running() == [(7, "prefilling", 6, 6, 0, 2), (8, "prefilling", 6, 6, 0, 1)]  # and 9 waits
    core.commit(plan.step, tokens(1, 0))
    assert core.running() == [(7, "decoding", 6, 7, 6, 2), (8, "prefilling", 6, 6, 2, 1)]
    core.abort(7)
    assert [one[0] for one in core.running()] == [8]
