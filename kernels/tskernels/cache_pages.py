"""How many pages caches and states can ever need: what the runtime allocates, and programs of fixed shapes are compiled for. Imports no
torch."""

from __future__ import annotations

from typing import Final

PAGE_SIZE: Final = 16
"""Tokens of a page, where nothing else is said."""
MOST_DEPTH: Final = 2
"""Steps under way at once."""
DRAFTED_ROWS: Final = 64
"""Of a step at most, which drafts have: each takes as much memory as the vocabulary."""
SCORED_ROWS: Final = 64
"""Of a step at most, whose logits are there only to score prompts: the same."""
_FEWEST_COLUMNS: Final = 8


def window_pages(window: int, num_pages: int, *, page_size: int, max_sequences: int, max_step_tokens: int, depth: int = MOST_DEPTH) -> int:
    """Of the caches of a window, where those without one have `num_pages`."""
    # What a sequence has between two steps: its window begins within a page, and ends within one.
    least = -(-min(window, num_pages * page_size) // page_size) + 2
    # Steps under way add to them, and a prompt that was here before finds pages that no sequence has any more.
    running = max_sequences * least + depth * -(-max_step_tokens // page_size)
    return max(least, min(2 * running, num_pages))


def state_pages(*, max_sequences: int, prefix_cache: bool = True, depth: int = MOST_DEPTH) -> int:
    """Of states: one a sequence, and with a prefix cache a copy of each."""
    # What has run still holds its state until its last step is over.
    return 2 * max_sequences + depth - 1 if prefix_cache else max_sequences + depth


def table_columns(pages: int) -> int:
    """The width of block tables for sequences of so many pages: a power of two, so that a growing sequence changes it seldom."""
    return max(_FEWEST_COLUMNS, 1 << (pages - 1).bit_length())
