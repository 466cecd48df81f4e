"""The scheduler of an engine, by its sizes and its program."""

from __future__ import annotations

from tskernels.cache_pages import SCORED_ROWS
from tsrun._core import Scheduler
from tsrun.limits import LimitOptions, Limits
from tsrun.program import Program


def new_scheduler(
    limits: Limits, options: LimitOptions, program: Program, *, longest: int, follows_pages: bool, namespace: int
) -> Scheduler:
    """longest: tokens of a prompt and its answer; namespace: that its caches share with others that hold the same for the same tokens."""
    return Scheduler(
        num_pages=limits.num_pages,
        page_size=limits.page_size,
        max_sequences=limits.max_sequences,
        max_step_tokens=limits.max_step_tokens,
        max_context=longest,
        # A window that no sequence outgrows is as good as one of the longest sequence.
        windows=[(min(window, limits.max_context), pages) for window, pages in limits.windows],
        states=[(limits.snapshot_tokens, limits.num_states)] if limits.num_states else [],
        num_rank_groups=program.sequence_groups,
        paddings=program.paddings,
        depth=options.depth,
        prefix_cache=options.prefix_cache,
        scored_rows=SCORED_ROWS,
        events=follows_pages,
        namespace=namespace,
    )
