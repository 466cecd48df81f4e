"""What the scheduler does beside running requests in turn: cached prefixes, fairness, drafts, overlap, failures and the host tier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tsrun._core import Scheduler, StepPlan

DRAFTED = -(2**31)


def scheduler(**options: Any) -> Scheduler:
    limits = {"num_pages": 16, "page_size": 4, "max_sequences": 4, "max_step_tokens": 16, "max_context": 64}
    return Scheduler(**(limits | options))


def tokens(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def prompt(length: int, first: int = 100) -> NDArray[np.int32]:
    return np.arange(first, first + length, dtype=np.int32)


def planned(core: Scheduler, now: float = 0.0) -> StepPlan:
    plan = core.plan(now)
    assert plan is not None
    return plan


def step(core: Scheduler, token: int = 7) -> list[int]:
    """Plan and commit; the requests of the step."""
    plan = planned(core)
    requests: list[int] = plan.requests.tolist()
    core.commit(plan.step, np.full(len(requests), token, dtype=np.int32))
    return requests


def run(core: Scheduler) -> None:
    while core.num_running + core.num_waiting:
        step(core)


# Cached prefixes.


def test_a_prompt_that_was_seen_is_computed_from_its_last_page_on() -> None:
    core = scheduler()
    core.submit(1, prompt(10), 1)
    run(core)
    core.submit(2, prompt(10), 1)
    plan = planned(core)
    assert plan.positions.tolist() == [8, 9]
    assert plan.table_updates.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 2, 2]]
    assert core.cached_tokens(2) == 8


def test_of_a_prompt_of_whole_pages_the_last_one_is_computed_again() -> None:
    core = scheduler()
    core.submit(1, prompt(8), 1)
    run(core)
    core.submit(2, prompt(8), 1)
    assert planned(core).positions.tolist() == [4, 5, 6, 7], "somebody must make the next token"


def test_what_a_request_made_is_found_by_the_next_turn() -> None:
    core = scheduler()
    core.submit(1, prompt(5), 8)
    for token in range(8):
        step(core, 50 + token)
    core.submit(2, np.concatenate([prompt(5), np.arange(50, 58, dtype=np.int32), prompt(3)]), 1)
    plan = planned(core)
    assert plan.positions[0] == 12, "13 tokens less the last, which was made but never fed"


@pytest.mark.parametrize("options", [{"salt": 1}, {}])
def test_prompts_of_another_salt_share_nothing(options: dict[str, Any]) -> None:
    core = scheduler()
    core.submit(1, prompt(10), 1)
    run(core)
    core.submit(2, prompt(10), 1, **options)
    assert (planned(core).positions[0] == 0) == bool(options)


def test_without_a_prefix_cache_every_prompt_is_computed() -> None:
    core = scheduler(prefix_cache=False)
    for request in (1, 2):
        core.submit(request, prompt(10), 1)
        assert planned(core).positions[0] == 0
        core.commit(request - 1, tokens(7))
    assert core.num_cached_pages == 0


def test_a_prefix_that_is_being_computed_is_waited_for() -> None:
    core = scheduler(max_step_tokens=8)
    core.submit(1, prompt(20), 1)
    core.submit(2, prompt(20), 1)
    computed = []
    while core.num_running + core.num_waiting:
        plan = planned(core)
        computed += [(int(request), int(n)) for request, (a, b) in zip(plan.requests, plan.spans, strict=True) for n in [b - a]]
        core.commit(plan.step, np.full(len(plan.requests), 7, dtype=np.int32))
    assert sum(n for request, n in computed if request == 2) == 4, "only its last page"


def test_two_that_compute_the_same_page_end_up_with_one() -> None:
    core = scheduler(num_pages=8)
    core.submit(1, tokens(1), 12)
    core.submit(2, tokens(1), 12)
    for _ in range(6):
        step(core)
    assert core.num_free_pages == 8 - 1 - 2, "they share the page that both have filled"


def test_the_page_unused_for_the_longest_is_evicted_and_of_a_prompt_the_last() -> None:
    core = scheduler(num_pages=4, max_context=16)
    core.submit(1, prompt(8, first=100), 1)
    run(core)
    core.submit(2, prompt(4, first=200), 1)
    run(core)
    assert core.num_cached_pages == 3
    core.submit(3, prompt(8, first=300), 1)
    run(core)
    core.submit(4, prompt(8, first=100), 1)
    plan = planned(core)
    assert plan.positions[0] == 4, "of request 1 the second page is gone"


def test_among_equals_the_one_with_a_cached_prefix_goes_first() -> None:
    core = scheduler(max_sequences=1)
    core.submit(1, prompt(12), 1)
    run(core)
    core.submit(2, prompt(12, first=500), 1)
    core.submit(3, prompt(12), 1)
    assert step(core) == [3]
    assert step(core) == [2]


def test_nobody_is_passed_over_for_ever() -> None:
    core = scheduler(max_sequences=1)
    core.submit(1, prompt(12), 1)
    run(core)
    core.submit(2, prompt(12, first=500), 1)
    for request in range(3, 30):
        core.submit(request, prompt(12), 1)
    order = [step(core)[0] for _ in range(28)]
    assert order.index(2) == 8


def test_page_events_tell_what_the_cache_holds() -> None:
    core = scheduler(num_pages=4, max_context=16, events=True)
    core.submit(1, prompt(8), 1)
    run(core)
    first, second = core.page_events()
    assert (first[0], first[3], first[4].tolist()) == ("stored", 0, [100, 101, 102, 103])
    assert (second[0], second[3], second[4].tolist()) == ("stored", first[2], [104, 105, 106, 107])
    core.submit(2, prompt(12, first=500), 1)
    run(core)
    events = core.page_events()
    assert [(kind, block) for kind, _, block, *_ in events if kind == "removed"] == [("removed", second[2])]
    assert core.page_events() == []


# Groups of caches.


def test_a_window_lets_its_old_pages_go() -> None:
    core = scheduler(num_pages=16, windows=[(6, 4)], max_context=64, prefix_cache=False)
    core.submit(1, prompt(40), 20)
    pages: dict[int, int] = {}
    while core.num_running + core.num_waiting:
        plan = planned(core)
        for group, _, index, page in plan.table_updates.tolist():
            if group == 1:
                pages[index] = page
        core.commit(plan.step, np.full(len(plan.requests), 7, dtype=np.int32))
    assert len(pages) == 15
    assert set(pages.values()) == {0, 1, 2, 3}


def test_a_prefix_is_found_only_where_every_group_can_go_on() -> None:
    core = scheduler(num_pages=16, windows=[(4, 4)], max_sequences=1)
    core.submit(1, prompt(30), 1)
    run(core)
    core.submit(2, prompt(30), 1)
    assert planned(core).positions[0] == 28


def test_a_recurrent_state_is_copied_and_started_from() -> None:
    core = scheduler(states=[(8, 4)], max_context=64)
    core.submit(1, prompt(20), 1)
    copies = []
    rows = []
    while core.num_running + core.num_waiting:
        plan = planned(core)
        rows.append(plan.spans.tolist()[0])
        copies += plan.copies.tolist()
        core.commit(plan.step, tokens(7))
    assert rows == [[0, 8], [0, 8], [0, 4]], "a state can be copied only between chunks"
    assert copies == [[1, 0, 1], [1, 0, 2]]
    core.submit(2, prompt(20), 1)
    plan = planned(core)
    assert plan.positions[0] == 16
    [[group, source, target]] = plan.copies.tolist()
    assert (group, source) == (1, 2)
    assert target not in (1, 2)
    assert plan.slots[1].tolist() == [target] * 4


# Order and fairness.


def test_priorities_go_first_and_age() -> None:
    core = scheduler(max_sequences=1, aging_seconds=10)
    core.submit(1, tokens(1), 1)
    plan = planned(core)
    core.submit(2, tokens(2), 1, priority=2, now=0)
    core.submit(3, tokens(3), 1, priority=1, now=15)
    core.commit(plan.step, tokens(7))
    plan = planned(core, now=16)  # 2 has risen to class 1, and came first
    assert plan.requests.tolist() == [2]
    core.commit(plan.step, tokens(7))
    core.submit(4, tokens(4), 1, priority=0, now=16)
    assert planned(core, now=16).requests.tolist() == [4]


def test_a_light_user_does_not_wait_for_a_heavy_ones_prompts() -> None:
    core = scheduler(num_pages=64, max_context=128)
    for request in range(8):
        core.submit(request, prompt(40, first=1000 * request), 2, user=1)
    step(core)
    core.submit(100, prompt(6), 2, user=2)
    plan = planned(core)
    assert plan.requests.tolist() == [100, 0], "the light user's prompt first, then the rest of the step"


def test_a_heavy_user_gives_a_seat_up() -> None:
    core = scheduler(max_sequences=4)
    for request in range(4):
        core.submit(request, tokens(request), 30, user=1)
    step(core)
    core.submit(100, tokens(50), 40, user=2)
    assert set(step(core)) == {0, 1, 2, 100}
    assert core.preemptions == 1
    core.submit(101, tokens(51), 40, user=2)
    assert set(step(core)) == {0, 1, 100, 101}
    core.submit(102, tokens(52), 40, user=2)
    for _ in range(3):
        assert set(step(core)) == {0, 1, 100, 101}, "the shares are equal"


def test_who_is_in_a_step_gives_its_seat_up_after_it() -> None:
    core = scheduler(max_sequences=2, depth=2)
    for request in range(2):
        core.submit(request, tokens(request), 30, user=1)
    first = planned(core)
    core.submit(100, tokens(50), 40, user=2)
    second = planned(core)
    assert second.requests.tolist() == [0], "the youngest is left out, so that it lands"
    core.commit(first.step, tokens(7, 7))
    assert set(planned(core).requests.tolist()) == {0, 100}


def test_a_long_prompt_does_not_lengthen_the_step_of_another_users_first_token() -> None:
    core = scheduler(num_pages=64, max_context=128, max_sequences=8)
    for request in range(3):
        core.submit(request, prompt(4, first=1000 * request), 30, user=1)
    core.submit(3, prompt(40, first=5000), 2, user=1)
    step(core)
    core.submit(100, prompt(6), 2, user=2)
    assert set(step(core)) == {0, 1, 2, 100}, "request 3 has rows to come, and room for them"
    assert set(step(core)) == {0, 1, 2, 3, 100}


def test_admission_stops_where_running_requests_would_fall_under_the_floor() -> None:
    core = scheduler(num_pages=400, max_sequences=64, max_step_tokens=256, max_context=512, floor=50.0)
    now, running = 0.0, []
    for index in range(300):
        if index % 4 == 0 and index // 4 < 64:
            core.submit(index // 4, tokens(index), 450, now=now)
        plan = planned(core, now)
        running.append(len(plan.requests))
        # A step takes 4 ms and 1 ms more for each sequence: 16 of them take the 20 ms that 50 tokens per second allow.
        now += 0.004 + 0.001 * running[-1]
        core.commit(plan.step, np.full(running[-1], 7, dtype=np.int32), now=now)
    assert max(running) == 16
    assert core.num_waiting > 0


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    core = scheduler(max_sequences=1)
    core.submit(1, tokens(1), 20, deadline=5.0)
    core.submit(2, tokens(2), 20, deadline=3.0)
    core.submit(3, tokens(3), 1)
    step(core)
    plan = planned(core, now=4.0)
    assert core.ended() == [(2, "deadline")]
    assert plan.requests.tolist() == [1]
    core.commit(plan.step, tokens(7))
    assert planned(core, now=6.0).requests.tolist() == [3]
    assert core.ended() == [(1, "deadline")]


def test_a_draining_scheduler_takes_no_more_and_ends_what_it_has() -> None:
    core = scheduler()
    core.submit(1, tokens(1), 3)
    core.drain()
    assert core.refusal(1, 1) == "the scheduler is draining"
    with pytest.raises(ValueError, match=r"^request 2: the scheduler is draining$"):
        core.submit(2, tokens(1), 1)
    run(core)
    assert core.ended() == [(1, "length")]


# Steps under way.


def test_the_next_step_is_planned_while_one_runs() -> None:
    core = scheduler(depth=2)
    core.submit(1, tokens(1, 2), 3)
    first = planned(core)
    second = planned(core)
    assert (second.ids.tolist(), second.positions.tolist(), second.follows.tolist()) == ([-1], [2], [0])
    with pytest.raises(RuntimeError, match=r"^plan while step 0 is not committed$"):
        core.plan()
    with pytest.raises(RuntimeError, match=r"^commit of step 1 before step 0$"):
        core.commit(second.step, tokens(9))
    assert first.ids.tolist() == [1, 2], "both are there to read"
    core.commit(first.step, tokens(8))
    third = planned(core)
    assert third.positions.tolist() == [3]
    core.commit(second.step, tokens(9))
    assert core.plan() is None, "its last token is under way"
    core.commit(third.step, tokens(10))
    assert core.ended() == [(1, "length")]


def test_a_request_that_needs_its_token_runs_in_every_second_step() -> None:
    core = scheduler(depth=2)
    core.submit(1, tokens(1), 4, needs_token=True)
    core.submit(2, tokens(2), 4)
    plans = [planned(core), planned(core)]
    assert [plan.requests.tolist() for plan in plans] == [[1, 2], [2]]
    core.commit(plans[0].step, tokens(7, 8))
    plan = planned(core)
    assert plan.requests.tolist() == [1, 2]
    assert plan.ids.tolist() == [7, -1]
    assert plan.follows.tolist() == [-1, 0]


def test_a_request_that_ends_under_way_keeps_its_pages_until_then() -> None:
    core = scheduler(depth=2, prefix_cache=False)
    core.submit(1, tokens(1), 9)
    first, second = planned(core), planned(core)
    core.commit(first.step, tokens(7))
    core.finish(1)
    assert (core.num_running, core.num_free_pages) == (0, 15)
    with pytest.raises(ValueError, match="already submitted and not yet ended"):
        core.submit(1, tokens(1), 1)
    core.commit(second.step, tokens(8))
    assert core.num_free_pages == 16


def test_drafts_are_verified_and_what_is_not_accepted_is_taken_back() -> None:
    core = scheduler()
    core.submit(1, tokens(1), 20, needs_token=True)
    step(core, 50)
    core.draft(1, tokens(51, 52, 99))
    plan = planned(core)
    assert plan.ids.tolist() == [50, 51, 52, 99]
    core.commit(plan.step, tokens(51, 52, 53), tokens(3))
    plan = planned(core)
    assert (plan.ids.tolist(), plan.positions.tolist()) == ([53], [4])


def test_counts_that_no_step_can_have_made_are_refused_and_nothing_is_lost() -> None:
    core = scheduler()
    core.submit(1, tokens(1), 20, device_drafts=2)
    step(core, 50)
    plan = planned(core)
    assert plan.ids.tolist() == [50, DRAFTED, DRAFTED]
    with pytest.raises(RuntimeError, match=r"sequence 0 makes 1 to 3 tokens, got 4$"):
        core.commit(plan.step, tokens(1, 2, 3, 4), tokens(4))
    with pytest.raises(RuntimeError, match=r"the counts make 2 tokens, got 1$"):
        core.commit(plan.step, tokens(1), tokens(2))
    core.commit(plan.step, tokens(51, 52), tokens(2))
    assert planned(core).positions.tolist() == [3, 4, 5]


def test_rows_planned_after_drafts_under_way_stand_where_all_are_accepted() -> None:
    core = scheduler(depth=2)
    core.submit(1, tokens(1), 20, device_drafts=1)
    step(core, 50)
    first, second = planned(core), planned(core)
    assert (first.positions.tolist(), second.positions.tolist()) == ([1, 2], [3, 4])
    core.commit(first.step, tokens(51), tokens(1))  # the draft was wrong: the second really ran at 2 and 3
    core.commit(second.step, tokens(52, 53), tokens(2))
    assert planned(core).positions.tolist() == [4, 5]


def test_a_lost_step_is_computed_again_with_the_whole_tables() -> None:
    core = scheduler(depth=2)
    core.submit(1, prompt(6), 9)
    step(core, 50)
    first, second = planned(core), planned(core)
    core.fail(first.step)
    with pytest.raises(RuntimeError, match=r"^step 2 is not under way: no step is$"):
        _ = second.ids
    plan = planned(core)
    assert (plan.ids.tolist(), plan.positions.tolist()) == ([50], [6])
    assert plan.table_updates.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]


# The host tier.


def test_pages_are_written_back_and_loaded_ahead() -> None:
    core = scheduler(num_pages=4, num_host_pages=8, max_context=16)
    core.submit(1, prompt(12), 1)
    run(core)
    [(number, kind, ranks, pairs)] = core.transfers()
    assert (kind, ranks, pairs.tolist()) == ("store", 0, [[0, 0], [1, 1], [2, 2]])
    core.transferred(number, True)
    core.submit(2, prompt(12, first=500), 1)
    run(core)
    [(number, *_)] = core.transfers()
    core.transferred(number, True)
    core.submit(3, prompt(12), 1)
    assert core.plan() is None, "it waits for its pages"
    [(number, kind, _, pairs)] = core.transfers()
    assert (kind, len(pairs), core.cached_tokens(3)) == ("load", 1, 8), "its first page was still on the device"
    core.transferred(number, True)
    assert planned(core).positions.tolist() == [8, 9, 10, 11]


def test_a_load_that_fails_is_computed_instead() -> None:
    core = scheduler(num_pages=4, num_host_pages=8, max_context=16)
    for request, first in ((1, 100), (2, 500)):
        core.submit(request, prompt(12, first=first), 1)
        run(core)
        core.transferred(core.transfers()[0][0], True)
    core.submit(3, prompt(12), 1)
    assert core.plan() is None
    core.transferred(core.transfers()[0][0], False)
    assert planned(core).positions[-1] == 11
    with pytest.raises(RuntimeError, match=r"^transfer 99 is not under way$"):
        core.transferred(99, True)


def test_an_abort_while_pages_load_waits_for_the_transfer() -> None:
    core = scheduler(num_pages=4, num_host_pages=8, max_context=16)
    for request, first in ((1, 100), (2, 500)):
        core.submit(request, prompt(12, first=first), 1)
        run(core)
        core.transferred(core.transfers()[0][0], True)
    core.submit(3, prompt(12), 1)
    core.plan()
    free = core.num_free_pages
    core.abort(3)
    assert core.num_free_pages == free
    core.transferred(core.transfers()[0][0], True)
    assert core.num_free_pages == 4
    assert core.plan() is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"depth": 3}, "depth must be at most 2, got 3"),
        ({"windows": [(8, 3)]}, "windows: a window of 8 tokens needs at least 4 pages, got 3"),
        ({"states": [(6, 4)]}, "states: 6 tokens between snapshots are no multiple of page_size, 4"),
        ({"states": [(8, 4), (8, 4)]}, "states: one group, got 2"),
        ({"windows": [(8, 4)], "num_host_pages": 2}, "host pages hold full attention only"),
    ],
)
def test_limits_that_can_not_work_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}"):
        scheduler(**options)


# Found by attacks.


def steps_until(core: Scheduler, request: int, most: int = 100) -> int:
    for number in range(most):
        if request in step(core):
            return number
    return most


def test_who_waits_for_a_prefix_lets_others_pass() -> None:
    core = scheduler(num_pages=400, max_context=400)
    core.submit(1, prompt(300), 5, user=1)
    step(core)
    core.submit(2, prompt(300), 5, user=2)
    core.submit(3, prompt(3, first=5000), 5, user=3)
    assert steps_until(core, 3) == 0, "another user's line"
    core.submit(4, prompt(300), 5, user=2)
    core.submit(5, prompt(3, first=6000), 5, user=2)
    assert steps_until(core, 5) == 0, "behind in the same line"


def test_drafts_take_no_row_that_another_needs() -> None:
    core = scheduler(num_pages=64, max_step_tokens=16, max_context=200)
    core.submit(1, tokens(1), 150, needs_token=True)
    core.submit(2, tokens(2), 150)
    step(core)
    core.submit(3, tokens(3), 50, user=3)
    for _ in range(3):
        core.draft(1, tokens(*range(40)))
        plan = planned(core)
        assert set(plan.requests.tolist()) == {1, 2, 3}
        counts = np.array([1, 1, 1], dtype=np.int32)
        core.commit(plan.step, tokens(7, 7, 7), counts)


def test_a_start_in_another_group_of_ranks_is_not_overlooked() -> None:
    core = scheduler(num_pages=100, max_sequences=8, max_step_tokens=32, max_context=400, num_rank_groups=2)
    core.submit(1, prompt(200, first=9000), 150)
    core.submit(2, prompt(240), 100)
    for _ in range(3):
        step(core)
    core.submit(3, np.concatenate([prompt(236), prompt(40, first=5000)]), 5)
    assert steps_until(core, 3) < 20, "when the prefix that it shares is there"


def test_a_promise_that_was_kept_blocks_nobody() -> None:
    core = scheduler(num_pages=4000, max_sequences=8, max_step_tokens=32, max_context=8000, windows=[(8, 16)])
    core.submit(1, prompt(100), 2000)
    step(core)
    core.submit(2, prompt(100, first=1000), 10)
    assert steps_until(core, 2) < 10


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"aging_seconds": float("nan")}, "aging_seconds must be more than 0, got nan"),
        ({"aging_seconds": 0.0}, "aging_seconds must be more than 0, got 0"),
        ({"floor": float("inf")}, "floor must be tokens per second, 0 or more, got inf"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        scheduler(**options)


def test_times_and_tokens_that_mean_nothing_are_refused() -> None:
    core = scheduler()
    with pytest.raises(ValueError, match=r"^now must be a time in seconds, got nan$"):
        core.plan(float("nan"))
    with pytest.raises(ValueError, match=r"^request 1: the deadline is not a number$"):
        core.submit(1, tokens(1), 1, deadline=float("nan"))
    with pytest.raises(ValueError, match=r"^request 1: a token is at least 0, got -5$"):
        core.submit(1, tokens(1, -5), 1)
    assert core.refusal(2**62, 2**62) == "prompt and new tokens make more than max_context, 64"
    core.submit(1, tokens(1), 3)
    plan = planned(core)
    with pytest.raises(RuntimeError, match=r"^commit of step 0 with a token below 0$"):
        core.commit(plan.step, tokens(-1))
    with pytest.raises(ValueError, match="now must be a time"):
        core.commit(plan.step, tokens(1), now=float("inf"))
    core.commit(plan.step, tokens(1))


def test_updates_that_are_kept_stay_as_they_were() -> None:
    core = scheduler(num_pages=2000, page_size=1, max_sequences=2, max_step_tokens=1000, max_context=1000, prefix_cache=False)
    core.submit(1, prompt(900), 3)
    updates = planned(core).table_updates
    before = updates.tolist()
    core.commit(0, tokens(7))
    core.submit(2, prompt(990), 3)
    for _ in range(3):
        step(core)
    assert updates.tolist() == before
