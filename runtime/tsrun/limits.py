"""How much the engine may hold at once, and the sizes that follow from it for one artifact on one machine."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Literal

from tskernels.cache_pages import DRAFTED_ROWS, MOST_DEPTH, PAGE_SIZE, SCORED_ROWS, state_pages, window_pages
from tskernels.dtypes import size_bytes
from tsrun.errors import MachineError, RequestError

Speculate = Literal["lookup", "mtp", "draft", "off"]
_CACHE_SHARE_OF_MEMORY = 4  # a quarter; pages that are never written are never made resident
MOST_DRAFTS = 31
"""Of a sequence in a step."""
MOST_GUESSES = 8
"""Of a sequence after a step, each of which a model is run for."""
MOST_BRANCHES = 4
"""Of a sequence in a step."""
_MOST_STEP = 2**20  # tokens and sequences of a step, whose arrays are allocated for the largest


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """What a user may set. None: follows from the artifact and the machine.

    depth: steps under way at once, 1 or 2; with 2 a step is planned, and the tokens of the one before are looked at, while one runs.
    screen: of the head read only the rows that can have the logits which count, where the artifact says which they are.
    snapshot_tokens: of a sequence with states a copy is kept each so many tokens, rounded up to whole pages, for the prefix cache.
    speculate: where drafts of tokens come from: `lookup`; `mtp`, the artifact's entry for drafts, and lookup where that is surer; `draft`,
    the same with another artifact, at the path `draft`; `off`. None is `draft` where there is that path, and else `lookup` where ranks
    share their sequences and there are no states, which can not be taken back.
    branches: so many of a sequence's guesses, from the first on, may be verified with the second likeliest token beside them; None is none.
    target: what runs the program, where that is not what it was compiled for.
    """

    page_size: int = PAGE_SIZE
    num_pages: int | None = None
    cache_bytes: int | None = None
    max_sequences: int = 32
    max_step_tokens: int = 512
    max_context: int | None = None
    depth: int = 2
    prefix_cache: bool = True
    screen: bool = True
    snapshot_tokens: int = 256
    speculate: Speculate | None = None
    draft: str | None = None
    branches: int | None = None
    target: Literal["cpu"] | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise RequestError(name.replace("_", "-"), f"got {value}", "give a positive count")
        for name, value in (("max-sequences", self.max_sequences), ("max-step-tokens", self.max_step_tokens)):
            if value > _MOST_STEP:
                raise RequestError(name, f"got {value}", f"give at most {_MOST_STEP:,}")
        if self.depth > MOST_DEPTH:
            raise RequestError("depth", f"got {self.depth}", f"give 1 or {MOST_DEPTH}")
        if self.num_pages is not None and self.cache_bytes is not None:
            raise RequestError("num-pages", "given together with cache-bytes", "give one of them")
        if self.draft is not None and self.speculate not in (None, "draft"):
            raise RequestError("draft", f"given together with speculate {self.speculate}", "leave one of them out")
        if self.draft is None and self.speculate == "draft":
            raise RequestError("speculate", "there is no artifact that drafts", "give one with --draft NAME.tsa")
        if self.branches is not None and not self.guesses:
            raise RequestError("branches", "no model guesses tokens", "give --speculate mtp or --draft NAME.tsa with it")
        if (self.branches or 0) > MOST_BRANCHES:
            raise RequestError("branches", f"got {self.branches}", f"give at most {MOST_BRANCHES}")

    @property
    def guesses(self) -> bool:
        """Whether a model is to guess tokens, which needs scratch pages."""
        return self.draft is not None or self.speculate == "mtp"


@dataclass(frozen=True, slots=True)
class Limits:
    """Every size settled; the same on every rank.

    num_pages: of the caches without a window; windows: each with the pages of its caches. Both are of each group of ranks that keeps
    sequences of its own. The caches of one window, or without one, are a group: they share pages and block tables. num_states: states
    of sequences, those that run and copies of them each `snapshot_tokens` tokens; 0 where the model has none. scratch_pages: that each
    sequence has past the others' pages, for tokens that are only guessed.
    """

    page_size: int
    num_pages: int
    max_sequences: int
    max_step_tokens: int
    max_context: int
    windows: tuple[tuple[int, int], ...] = ()
    num_states: int = 0
    snapshot_tokens: int = 0
    scratch_pages: int = 0

    @property
    def num_groups(self) -> int:
        """Of caches; states are the last one."""
        return len(self.pages) + (self.num_states > 0)

    @property
    def max_output_rows(self) -> int:
        """Of a step: one a sequence, those before drafts, and those that score prompts."""
        return self.max_sequences + DRAFTED_ROWS + SCORED_ROWS

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    @property
    def stored_pages(self) -> dict[int, int]:
        """With one for the rows that pad a step, which nobody reads, and the scratch pages."""
        return {window: pages + 1 + self.scratch_pages * self.max_sequences for window, pages in self.pages.items()}

    @property
    def pages(self) -> dict[int, int]:
        """Pages of each group of caches, by window and in the groups' order; 0 is no window."""
        return {0: self.num_pages, **dict(self.windows)}


def settle(
    options: LimitOptions,
    *,
    context: int | None,
    row_bytes: Mapping[int, int],
    ranks: int,
    token_multiple: int = 1,
    state_bytes: int = 0,
    cache_memory: int | None = None,
) -> Limits:
    """Sizes for a model whose caches take `row_bytes` a token on one rank, by window, and whose states `state_bytes` a sequence.

    The largest step is a multiple of `token_multiple`, to which steps may be padded. Without wishes: pages for every
    sequence at its longest, as far as a quarter of the machine's memory goes. States, of which there are always enough for every
    sequence and a copy of each, come out of the same memory. cache_memory: bytes that a rank has for caches where that is not the
    machine's memory.
    """
    size = options.page_size
    longest = min(n for n in (options.max_context, context, 2**31 - 1) if n is not None)
    max_step_tokens = -(-options.max_step_tokens // token_multiple) * token_multiple
    windows = sorted(row_bytes.keys() - {0})
    num_states = (
        state_pages(max_sequences=options.max_sequences, prefix_cache=options.prefix_cache, depth=options.depth) if state_bytes else 0
    )

    def pages_of_window(window: int, num_pages: int) -> int:
        running = {"max_sequences": options.max_sequences, "max_step_tokens": max_step_tokens, "depth": options.depth}
        return window_pages(window, num_pages, page_size=size, **running)

    scratch_pages = max(-(-MOST_GUESSES // size), branch_pages(options.branches or 0, size)) if options.guesses else 0

    def total_bytes(num_pages: int) -> int:
        rows = row_bytes.get(0, 0) * num_pages + sum(row_bytes[window] * pages_of_window(window, num_pages) for window in windows)
        scratch = sum(row_bytes.values()) * scratch_pages * options.max_sequences
        return (rows + scratch) * size + num_states * state_bytes

    # Slots are int32, so that the last one must be countable; rows that pad a step have a page past the others.
    most = (2**31 - 1) // size - 3
    if options.num_pages is not None:
        num_pages = min(options.num_pages, most)
    else:
        share = memory_bytes() // _CACHE_SHARE_OF_MEMORY // ranks if cache_memory is None else cache_memory
        budget = options.cache_bytes if options.cache_bytes is not None else share
        most = min(most, options.max_sequences * -(-longest // size))
        num_pages = bisect_right(range(1, most + 1), budget, key=total_bytes)
    if num_pages < 1:
        with_states = f" beside {num_states} states" if num_states else ""
        what = f"the cache memory holds no page of {size} tokens{with_states}, which takes {total_bytes(1)} bytes"
        fewer = ", fewer --max-sequences" if num_states or scratch_pages else ""
        raise MachineError("cache", what, f"give more with --cache-bytes{fewer} or a smaller --page-size")
    return Limits(
        page_size=size,
        num_pages=num_pages,
        max_sequences=options.max_sequences,
        max_step_tokens=max_step_tokens,
        max_context=min(longest, num_pages * size),
        windows=tuple((window, pages_of_window(window, num_pages)) for window in windows),
        num_states=num_states,
        snapshot_tokens=-(-options.snapshot_tokens // size) * size if num_states else 0,
        scratch_pages=scratch_pages,
    )


def branch_pages(place: int, page_size: int) -> int:
    """Scratch pages that the branches beside the drafts before a place may take: one at a place has its token, and place + 1 before it."""
    return sum(1 + -(-(before + 1) // page_size) for before in range(place))


def row_bytes(caches: Iterable[tuple[str, tuple[int, ...], int]]) -> dict[int, int]:
    """Bytes that one token takes in the caches of each window, which are given as (dtype, page, window)."""
    total: dict[int, int] = {}
    for dtype, page, window in caches:
        total[window] = total.get(window, 0) + size_bytes(dtype) * prod(page)
    return total


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
