"""How much the engine may hold at once, and the sizes that follow from it for one artifact on one machine."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from math import prod

from tsrun.errors import MachineError, RequestError

_ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "i32": 4, "i64": 8}
_CACHE_SHARE_OF_MEMORY = 4  # a quarter; pages that are never written are never made resident


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """What a user may set. None: follows from the artifact and the machine."""

    page_size: int = 16
    num_pages: int | None = None
    cache_bytes: int | None = None
    max_sequences: int = 32
    max_step_tokens: int = 512
    max_context: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise RequestError(name.replace("_", "-"), f"got {value}", "give a positive count")
        if self.num_pages is not None and self.cache_bytes is not None:
            raise RequestError("num-pages", "given together with cache-bytes", "give one of them")


@dataclass(frozen=True, slots=True)
class Limits:
    """Every size settled; the same on every rank. num_pages: of each group of ranks that keeps sequences of its own."""

    page_size: int
    num_pages: int
    max_sequences: int
    max_step_tokens: int
    max_context: int

    def pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)


def settle(options: LimitOptions, *, context: int | None, page_row_bytes: int, ranks: int, token_multiple: int = 1) -> Limits:
    """Sizes for a model whose caches take `page_row_bytes` a token on one rank, in all layers.

    The largest step is a multiple of `token_multiple`, to which steps may be padded. Without wishes: pages for every
    sequence at its longest, as far as a quarter of the machine's memory goes.
    """
    longest = min(n for n in (options.max_context, context, 2**31 - 1) if n is not None)
    page_bytes = max(1, page_row_bytes * options.page_size)
    if options.num_pages is not None:
        num_pages = options.num_pages
    else:
        budget = options.cache_bytes if options.cache_bytes is not None else memory_bytes() // _CACHE_SHARE_OF_MEMORY // ranks
        num_pages = min(budget // page_bytes, options.max_sequences * -(-longest // options.page_size))
    # Slots are int32, so that the last one must be countable; rows that pad a step have a page past the others.
    num_pages = min(num_pages, (2**31 - 1) // options.page_size - 1)
    if num_pages < 1:
        what = f"the cache memory holds no page of {options.page_size} tokens, which takes {page_bytes} bytes"
        raise MachineError("cache", what, "give more with --cache-bytes or a smaller --page-size")
    return Limits(
        page_size=options.page_size,
        num_pages=num_pages,
        max_sequences=options.max_sequences,
        max_step_tokens=-(-options.max_step_tokens // token_multiple) * token_multiple,
        max_context=min(longest, num_pages * options.page_size),
    )


def page_row_bytes(caches: list[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes that one token takes in all caches, given as (dtype, page)."""
    return sum(_ELEMENT_BYTES.get(dtype, 8) * prod(page) for dtype, page in caches)


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
