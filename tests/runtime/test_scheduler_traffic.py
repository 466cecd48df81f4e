"""Any traffic: random calls against a device that only knows what the plans say, and a cache that remembers the text behind each slot.

The exhaustive search over small configurations is runtime/csrc/tests/model; this one reads the arrays as an engine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tsrun._core import Scheduler, StepPlan

DRAFTED = -(2**31)
Text = tuple[int, ...]


def next_token(text: Text) -> int:
    """The model: any function of all tokens, with few results, so that prompts and answers share prefixes."""
    return 1 + (sum((i + 1) * t for i, t in enumerate(text)) + len(text)) % 2


@dataclass
class Call:
    """A step as the device gets it: copies of its arrays, and the request of each sequence."""

    number: int
    requests: list[int]
    ids: list[int]
    positions: list[int]
    slots: list[list[int]]
    spans: list[list[int]]
    lengths: list[int]
    samples: list[bool]
    follows: list[int]
    rows: list[int]
    updates: list[list[int]]

    @staticmethod
    def of(plan: StepPlan) -> Call:
        arrays = (plan.requests, plan.ids, plan.positions, plan.slots, plan.spans, plan.lengths, plan.samples, plan.follows)
        return Call(plan.step, *(array.tolist() for array in (*arrays, plan.table_rows, plan.table_updates)))


class Device:
    """Runs steps in order. A cache entry is the text up to its token; reading any other text is an error."""

    def __init__(self, page_size: int, windows: Sequence[int], num_rank_groups: int) -> None:
        self.page_size, self.windows, self.num_rank_groups = page_size, [0, *windows], num_rank_groups
        self.tables: dict[tuple[int, int, int], int] = {}  # group, row, index: page
        self.cache: dict[tuple[int, int, int], Text] = {}  # group of ranks, group, slot
        self.texts: dict[int, list[int]] = {}  # of each request, all tokens that are known here
        self.drafts: dict[int, int] = {}  # of each table row
        self.last: list[tuple[int, int]] = []  # of the step before, for each sequence: its new token, drafts not accepted

    def run(self, call: Call) -> list[list[int]]:
        """The new tokens of each sequence."""
        for group, row, index, page in call.updates:
            self.tables[group, row, index] = page
        results = [self._sequence(call, s) for s in range(len(call.requests))]
        self.last = [(made[-1] if made else 0, not_accepted) for made, not_accepted in results]
        return [made for made, _ in results]

    def _sequence(self, call: Call, s: int) -> tuple[list[int], int]:
        """Its new tokens, and how many of its drafts were not accepted."""
        first, end = call.spans[s]
        request, row = call.requests[s], call.rows[s]
        back = self.last[call.follows[s]][1] if call.follows[s] >= 0 else 0
        text = self.texts[request]
        begin = call.positions[first] - back
        assert call.positions[first:end] == list(range(begin + back, begin + back + end - first))
        assert call.lengths[s] - back == begin + end - first
        drafted: list[int] = []
        for j, token in enumerate(call.ids[first:end]):
            if token == DRAFTED:
                token = self.drafts[row]
            elif token < 0:
                token = self.last[~token][0]
            position = begin + j
            if position < len(text):
                assert token == text[position]
            else:
                drafted.append(token)
            self._write(call, s, first + j, position, position + back, (*text[: position + 1 - len(drafted)], *drafted))
        if not call.samples[s]:
            assert begin + end - first < len(text)
            return [], 0
        made: list[int] = []
        for guess in [*drafted, None]:
            made.append(next_token(tuple(text)))
            text.append(made[-1])
            if guess != made[-1]:
                break
        self.drafts[row] = 1 + (len(text) + request) % 2  # right as often as not
        return made, len(drafted) + 1 - len(made)

    def _write(self, call: Call, s: int, at: int, position: int, planned: int, text: Text) -> None:
        """Write one token's entry where the plan says, and read what it attends to."""
        ranks = at // (len(call.ids) // self.num_rank_groups)
        for group, window in enumerate(self.windows):

            def slot(of: int, group: int = group) -> int:
                return self.tables[group, call.rows[s], of // self.page_size] * self.page_size + of % self.page_size

            assert call.slots[group][at] == slot(planned)
            self.cache[ranks, group, slot(position)] = text
            oldest = max(0, position - window + 1) if window else 0
            for seen in range(oldest, position + 1):
                assert self.cache[ranks, group, slot(seen)] == text[: seen + 1], "a page holds another text"


class Traffic(RuleBasedStateMachine):
    """Submits, aborts, failures and ends at any moment, one or two steps under way."""

    @initialize(
        num_pages=st.integers(1, 10),
        page_size=st.integers(1, 4),
        max_sequences=st.integers(1, 5),
        units=st.integers(1, 9),
        max_context=st.integers(2, 24),
        num_rank_groups=st.sampled_from([1, 1, 2, 3]),
        unit=st.sampled_from([1, 1, 2]),
        padded_from=st.integers(2, 12),
        depth=st.sampled_from([1, 2]),
        prefix_cache=st.sampled_from([True, True, False]),
        windows=st.sampled_from([[], [], [3], [1, 5]]),
    )
    def start(
        self,
        num_pages: int,
        page_size: int,
        units: int,
        num_rank_groups: int,
        unit: int,
        padded_from: int,
        windows: list[int],
        **limits: Any,
    ) -> None:
        self.num_pages, self.page_size, self.limits = num_pages, page_size, limits
        self.num_rank_groups, self.depth = num_rank_groups, limits["depth"]
        self.paddings = [(1, num_rank_groups), (padded_from, num_rank_groups * unit)]
        self.most_rows = units * unit  # of one group of ranks
        self.core = Scheduler(
            num_pages=num_pages,
            page_size=page_size,
            max_step_tokens=self.most_rows * num_rank_groups,
            num_rank_groups=num_rank_groups,
            paddings=self.paddings,
            windows=[(window, -(-window // page_size) + 2 + num_pages // 3) for window in windows],
            **limits,
        )
        self.device = Device(page_size, windows, num_rank_groups)
        self.live: dict[int, int] = {}  # request: its longest length
        self.made: dict[int, int] = {}
        self.calls: list[Call] = []
        self.num_submitted = 0

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=16),
        max_new_tokens=st.integers(1, 8),
        user=st.integers(0, 2),
        priority=st.sampled_from([0, 0, 3]),
        salt=st.sampled_from([0, 0, 0, 1]),
        drafts=st.sampled_from([0, 0, 1]),
        needs_token=st.sampled_from([False, False, True]),
    )
    def submit(self, prompt: list[int], max_new_tokens: int, drafts: int, **options: Any) -> None:
        request, total = self.num_submitted, len(prompt) + max_new_tokens
        self.num_submitted += 1
        array = np.array(prompt, dtype=np.int32)
        options |= {"device_drafts": min(drafts, self.most_rows - 1)}
        can_never_run = total > self.limits["max_context"] or total - 1 > self.num_pages * self.page_size
        assert (self.core.refusal(len(prompt), max_new_tokens) is not None) == can_never_run
        if can_never_run:
            with pytest.raises(ValueError, match=f"^request {request}: "):
                self.core.submit(request, array, max_new_tokens, **options)
            return
        self.core.submit(request, array, max_new_tokens, **options)
        self.live[request], self.made[request] = total, 0
        # Two requests of one text but another salt: the salt is a token that the cache's text begins with.
        self.device.texts[request] = list(prompt)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.live)))
        self.core.abort(request)
        del self.live[request]

    @precondition(lambda self: any(self.made[request] for request in self.live))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from([request for request in self.live if self.made[request]]))
        self.core.finish(request)
        del self.live[request]

    @precondition(lambda self: len(self.calls) < self.depth)
    @rule()
    def plan(self) -> None:
        plan = self.core.plan()
        if plan is None:
            assert self.calls or not self.live, "somebody can always run"
            return
        assert len(set(plan.requests.tolist())) == len(plan.requests) <= self.limits["max_sequences"]
        assert set(plan.requests.tolist()) <= self.live.keys()
        self.check_padding(plan)
        self.calls.append(Call.of(plan))

    def check_padding(self, plan: StepPlan) -> None:
        """Rows of no sequence write to a page that is nobody's, and no block could be shorter."""
        rows = {row for first, last in plan.spans.tolist() for row in range(first, last)}
        assert len(rows) == sum(last - first for first, last in plan.spans.tolist())
        padding = sorted(set(range(len(plan.ids))) - rows)
        assert set(plan.slots[0, padding].tolist()) <= {self.num_pages * self.page_size}
        block = len(plan.ids) // self.num_rank_groups
        fullest = max(sum(row // block == group for row in rows) for group in range(self.num_rank_groups))
        assert fullest <= self.most_rows
        multiple = [multiple for first, multiple in self.paddings if fullest * self.num_rank_groups >= first][-1]
        assert len(plan.ids) == -(-fullest // (multiple // self.num_rank_groups)) * multiple

    @precondition(lambda self: self.calls)
    @rule()
    def commit(self) -> None:
        call = self.calls.pop(0)
        made = self.device.run(call)
        counts = np.array([len(tokens) for tokens in made], dtype=np.int32)
        self.core.commit(call.number, np.array([t for tokens in made for t in tokens], dtype=np.int32), counts)
        for request, tokens in zip(call.requests, made, strict=True):
            self.made[request] += len(tokens)
        ended = dict(self.core.ended())
        for request in ended:
            assert len(self.device.texts[request]) == self.live.pop(request), "ends at its length"
        assert not any(len(self.device.texts[request]) >= length for request, length in self.live.items())

    @precondition(lambda self: self.calls)
    @rule()
    def fail(self) -> None:
        """The steps never reach the device."""
        self.core.fail(self.calls[0].number)
        self.calls.clear()

    @invariant()
    def every_request_waits_or_runs(self) -> None:
        if hasattr(self, "core"):
            assert self.core.num_waiting + self.core.num_running == len(self.live)
            assert self.core.num_running <= self.limits["max_sequences"]

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        # The oldest advances in every step and may start over once for each token that it lacks.
        bound = 10 + sum(length * length for length in self.live.values())
        for _ in range(bound):
            while len(self.calls) < self.depth:
                before = len(self.calls)
                self.plan()
                if len(self.calls) == before:
                    break
            if not self.calls:
                break
            self.commit()
        assert not self.live, "every request ends"
        assert self.core.num_free_pages == self.num_rank_groups * self.num_pages, "every page returns"


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
