"""The scheduler, seen from Python: what it refuses, how its arrays live, and the invariants of any traffic."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from tsrun._core import Scheduler, StepPlan


def scheduler(
    *,
    num_pages: int = 16,
    page_size: int = 4,
    max_sequences: int = 4,
    max_step_tokens: int = 8,
    max_context: int = 32,
    num_groups: int = 1,
    paddings: list[tuple[int, int]] | None = None,
) -> Scheduler:
    return Scheduler(
        num_pages=num_pages,
        page_size=page_size,
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        max_context=max_context,
        num_groups=num_groups,
        paddings=paddings or [(1, num_groups)],
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
    assert plan.slots.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert plan.spans.tolist() == [[0, 3], [3, 8]]
    assert plan.lengths.tolist() == [3, 5]
    assert plan.last.tolist() == [2, 7]
    assert plan.tables.tolist() == [[0, 0], [1, 2]]
    assert plan.samples.tolist() == [True, False]
    assert plan.requests.dtype == np.int64
    assert plan.samples.dtype == np.bool_
    for array in (plan.ids, plan.positions, plan.slots, plan.spans, plan.lengths, plan.last, plan.tables):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


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
    with pytest.raises(RuntimeError, match=r"^finish while step 0 is not committed$"):
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
    with pytest.raises(RuntimeError, match="made no token in the last step; abort ends it"):
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
    assert planned(core).ids.ctypes.data == address


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
        _ = plan.tables


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


@dataclass
class Sequence:
    """What the model knows of a live request: its prompt with the tokens made, and how many of them were fed since it last started."""

    tokens: list[int]
    max_length: int
    fed: int = 0
    group: int = 0


@dataclass
class Step:
    """A copy of what the outstanding plan says of each sequence."""

    number: int
    rows: list[tuple[int, int, bool]] = field(default_factory=list)  # request, tokens fed at its end, samples


class Traffic(RuleBasedStateMachine):
    """Random calls against a model whose cache remembers which token of which request each slot holds."""

    @initialize(
        num_pages=st.integers(1, 8),
        page_size=st.integers(1, 4),
        max_sequences=st.integers(1, 5),
        units=st.integers(1, 9),
        max_context=st.integers(2, 24),
        num_groups=st.sampled_from([1, 1, 2, 3]),
        unit=st.sampled_from([1, 1, 2]),
        padded_from=st.integers(2, 12),
    )
    def start(
        self,
        num_pages: int,
        page_size: int,
        max_sequences: int,
        units: int,
        max_context: int,
        num_groups: int,
        unit: int,
        padded_from: int,
    ) -> None:
        self.num_pages, self.page_size, self.max_context, self.max_sequences = num_pages, page_size, max_context, max_sequences
        self.num_groups, self.paddings = num_groups, [(1, num_groups), (padded_from, num_groups * unit)]
        self.max_step_tokens = max_step_tokens = units * num_groups * unit
        self.core = scheduler(
            num_pages=num_pages,
            page_size=page_size,
            max_sequences=max_sequences,
            max_step_tokens=max_step_tokens,
            max_context=max_context,
            num_groups=num_groups,
            paddings=self.paddings,
        )
        self.live: dict[int, Sequence] = {}  # in the order of submission
        self.aborted_in_step: set[int] = set()
        self.cache: dict[tuple[int, int], tuple[int, int, int]] = {}  # group, slot: request, position, token
        self.step: Step | None = None
        self.sampled: set[int] = set()  # made a token in the last step
        self.num_submitted = 0
        self.restarts = 0

    @rule(length=st.integers(1, 16), max_new_tokens=st.integers(1, 8))
    def submit(self, length: int, max_new_tokens: int) -> None:
        request = self.num_submitted
        self.num_submitted += 1
        prompt = [1000 * request + position for position in range(length)]
        total = length + max_new_tokens
        if total > self.max_context or total - 1 > self.num_pages * self.page_size:
            with pytest.raises(ValueError, match=f"^request {request}: "):
                self.core.submit(request, tokens(*prompt), max_new_tokens)
            return
        self.core.submit(request, tokens(*prompt), max_new_tokens)
        self.live[request] = Sequence(prompt, total)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.live)))
        free = self.core.num_free_pages
        self.core.abort(request)
        del self.live[request]
        if self.step is not None:
            assert self.core.num_free_pages == free
            self.aborted_in_step.add(request)

    @precondition(lambda self: self.step is None)
    @rule()
    def plan(self) -> None:
        plan = self.core.plan()
        if plan is None:
            assert not self.live
            return
        assert 1 <= len(plan.ids) <= self.max_step_tokens
        assert len(plan.requests) <= self.max_sequences
        requests = plan.requests.tolist()
        if self.num_groups == 1:
            assert requests == sorted(requests), "first come, first served"
            assert requests[0] == min(self.live), "the oldest always advances"
        assert len(set(requests)) == len(requests)
        assert len(plan.positions) == len(plan.slots) == len(plan.ids)
        self.check_padding(plan)
        self.step = Step(plan.step)
        owners: dict[tuple[int, int], int] = {}
        for index, request in enumerate(requests):
            self.check_sequence(plan, index, request, owners)
        assert plan.tables.shape == (len(requests), max(list(owners.values()).count(request) for request in requests))
        assert self.core.num_free_pages <= self.num_groups * self.num_pages - len(owners)
        assert self.restarts <= self.core.preemptions

    def check_padding(self, plan: StepPlan) -> None:
        """Rows of no sequence write to a page that is nobody's, and no block could be shorter."""
        rows = {row for first, last in plan.spans.tolist() for row in range(first, last)}
        assert len(rows) == sum(last - first for first, last in plan.spans.tolist())
        padding = sorted(set(range(len(plan.ids))) - rows)
        assert set(plan.slots[padding].tolist()) <= {self.num_pages * self.page_size}
        block = len(plan.ids) // self.num_groups
        fullest = max(sum(row // block == group for row in rows) for group in range(self.num_groups))
        rounded = [-(-fullest // (m // self.num_groups)) * m for _, m in self.paddings]
        allowed = [tokens for tokens, (first, _) in zip(rounded, self.paddings, strict=True) if tokens >= first]
        assert len(plan.ids) == allowed[-1]

    def check_sequence(self, plan: StepPlan, index: int, request: int, owners: dict[tuple[int, int], int]) -> None:
        """Feed the model's cache with one sequence of the step, and read all of the sequence back."""
        assert self.step is not None
        sequence = self.live[request]
        rows = range(*plan.spans[index].tolist())
        length = int(plan.lengths[index])
        begin = length - len(rows)
        if begin != sequence.fed:
            assert begin == 0, "a sequence goes on where it was, or starts over"
            self.restarts += 1
        groups = {row // (len(plan.ids) // self.num_groups) for row in rows}
        assert len(groups) == 1, "a sequence is in one group"
        group = groups.pop()
        if begin == 0:
            sequence.group = group
        assert group == sequence.group, "a sequence stays in its group"
        table = plan.tables[index].tolist()
        used = -(-length // self.page_size)
        assert not any(table[used:])
        for page in table[:used]:
            assert 0 <= page < self.num_pages
            assert (group, page) not in owners, "a page has one owner"
            owners[group, page] = request
        for row, position in zip(rows, range(begin, length), strict=True):
            slot = table[position // self.page_size] * self.page_size + position % self.page_size
            assert plan.positions[row] == position
            assert plan.slots[row] == slot
            assert plan.ids[row] == sequence.tokens[position]
            self.cache[group, slot] = request, position, sequence.tokens[position]
        for position in range(length):
            slot = table[position // self.page_size] * self.page_size + position % self.page_size
            assert self.cache[group, slot] == (request, position, sequence.tokens[position])
        assert plan.last[index] == rows[-1]
        assert plan.samples[index] == (length == len(sequence.tokens))
        self.step.rows.append((request, length, bool(plan.samples[index])))

    @precondition(lambda self: self.step is not None)
    @rule()
    def commit(self) -> None:
        assert self.step is not None
        self.sampled.clear()
        made = tokens(*(-1 - index for index in range(len(self.step.rows))))
        self.core.commit(self.step.number, made)
        for (request, length, samples), token in zip(self.step.rows, made.tolist(), strict=True):
            sequence = self.live.get(request)
            if sequence is None:
                assert request in self.aborted_in_step
                continue
            sequence.fed = length
            if samples:
                sequence.tokens.append(token)
                self.sampled.add(request)
            if len(sequence.tokens) == sequence.max_length:
                del self.live[request]
        self.step = None
        self.aborted_in_step.clear()

    @precondition(lambda self: self.step is None and any(request in self.sampled for request in self.live))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.sampled & self.live.keys())))
        self.core.finish(request)
        del self.live[request]

    @invariant()
    def every_request_waits_or_runs(self) -> None:
        assert self.core.num_waiting + self.core.num_running == len(self.live)
        assert self.core.num_running <= self.max_sequences

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        if self.step is not None:
            self.commit()
        # The oldest advances in every step and may start over once for each token that it lacks.
        bound = sum(sequence.max_length * sequence.max_length for sequence in self.live.values())
        for _ in range(bound + 1):
            self.plan()
            if self.step is None:
                break
            self.commit()
        assert not self.live, "every request ends"
        assert self.core.num_free_pages == self.num_groups * self.num_pages, "every page returns"


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
