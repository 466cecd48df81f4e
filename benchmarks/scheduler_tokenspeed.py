"""`tokenspeed-scheduler`: C++ behind nanobind. Decodes and prompts share steps, nothing is kept on the host, no request is retracted."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import tokenspeed_scheduler as tokenspeed
from numpy.typing import NDArray
from scheduler_driver import TOKEN, WINDOW, Setup


def version() -> str:
    return installed("tokenspeed-scheduler")


class Scheduler:
    def __init__(self, setup: Setup) -> None:
        if (setup.depth > 1 or setup.drafts) and not setup.endless:
            raise ValueError("requests that end are driven here one token and one step at a time")
        pages = setup.pages * (3 if setup.hybrid else 1)  # one pool for all groups
        groups = [tokenspeed.CacheGroupConfig("full", setup.page, pages, tokenspeed.AttnKind.Full)]
        if setup.hybrid:
            groups.append(tokenspeed.CacheGroupConfig("window", setup.page, pages, tokenspeed.AttnKind.SlidingWindow, WINDOW))
            groups.append(tokenspeed.CacheGroupConfig("state", 0, pages, tokenspeed.AttnKind.State))
        config = tokenspeed.SchedulerConfig()
        config.cache_groups = groups
        config.prefix_granularity = WINDOW if setup.hybrid else setup.page  # states are kept where prefixes can be found
        config.num_device_pages = pages
        config.num_snapshot_pages = 1  # the null page alone: nothing is retracted to the host
        config.max_scheduled_tokens = setup.step_tokens
        config.max_batch_size = setup.running
        config.decode_input_tokens = 1 + setup.drafts
        config.overlap_schedule_depth = setup.depth - 1
        config.enable_mixed_prefill_decode = True
        config.disable_prefix_cache = not setup.prefix_cache
        config.disable_l2_cache = True
        self.core = tokenspeed.Scheduler(config)
        self.endless = setup.endless
        self.left: dict[str, int] = {}  # the engine ends requests here: the scheduler does not count their tokens

    def prompt(self, tokens: NDArray[np.int32]) -> list[int]:
        return list(tokens.tolist())

    def submit(self, request: int, prompt: list[int], new_tokens: int) -> None:
        spec = tokenspeed.RequestSpec()
        spec.request_id = f"r{request}"
        spec.tokens = prompt
        spec.max_new_tokens = new_tokens
        self.core.submit_requests([spec])
        if not self.endless:
            self.left[spec.request_id] = new_tokens

    def plan(self) -> Any | None:
        plan = self.core.next_execution_plan()
        return plan if plan.forward else None

    def outcome(self, plan: Any, accepted: NDArray[np.int32] | None = None) -> tuple[Any, list[str]]:
        event, names = tokenspeed.ExecutionEvent(), []
        one = [TOKEN]
        counts = None if accepted is None else accepted.tolist()
        _ = plan.aborts, plan.cache, plan.pages_to_copy_arrays(), plan.pages_to_zero_arrays()
        for batch in plan.forward:
            _ = batch.block_tables_arrays(), batch.request_pool_indices
            _ = batch.input_ids, batch.shifted_input_ids, batch.decode_input_ids
            _ = batch.extend_replay_lens, batch.extend_state_checkpoint_lens, batch.state_prefix_cached
            extends, prefixes = batch.num_extends(), batch.extend_prefix_lens
            lengths, prompts = batch.input_lengths, batch.prefill_lengths
            for row, name in enumerate(batch.request_ids):
                result = tokenspeed.ForwardEvent.ExtendResult()
                result.request_id = name
                # a chunk that does not end its prompt is told too, with no token: else its pages are never free again
                if row >= extends or prefixes[row] + lengths[row] >= prompts[row]:
                    result.tokens = one if counts is None or row < extends else [TOKEN] * counts[row]
                    names.append(name)
                event.add_event(result)  # a copy
        return event, names

    def commit(self, plan: Any, outcome: tuple[Any, list[str]]) -> Sequence[int]:
        event, names = outcome
        ended = []
        if not self.endless:
            for name in names:
                self.left[name] -= 1
                if not self.left[name]:
                    del self.left[name]
                    finish = tokenspeed.ForwardEvent.Finish()
                    finish.request_id = name
                    event.add_event(finish)
                    ended.append(int(name[1:]))
        self.core.advance(event)
        return ended

    def abort(self, requests: Sequence[int]) -> None:
        event = tokenspeed.ExecutionEvent()
        for request in requests:
            abort = tokenspeed.ForwardEvent.Abort()
            abort.request_id = f"r{request}"
            event.add_event(abort)
            self.left.pop(abort.request_id, None)
        self.core.advance(event)

    def sampled(self, outcome: tuple[Any, list[str]]) -> int:
        return len(outcome[1])

    def cached(self, plan: Any, request: int) -> int:
        for batch in plan.forward:
            if f"r{request}" in batch.request_ids:
                return int(batch.extend_prefix_lens[batch.request_ids.index(f"r{request}")])
        raise LookupError(f"request {request} is not in the plan")
