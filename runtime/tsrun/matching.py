"""Which tokens may come next in an answer that a grammar constrains. It is found out while the device computes what the model makes of
the token before, so that it is there when the logits are.

Dimensions: W words of bits, one bit a token of the vocabulary, as the sampler reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from tsrun.sampler import Words

if TYPE_CHECKING:
    from llguidance import LLMatcher

_WORD_BITS = 32
_BLOCK_BITS = 128  # the sampler reads whole blocks


class Matching:
    """One answer's place in a grammar. `allowed` [W] is what its sampler reads, and `error` why it can not go on."""

    def __init__(self, matcher: LLMatcher, *, vocabulary: int, eos_ids: Sequence[int], ignore_eos: bool) -> None:
        self.allowed: Words = np.zeros(-(-vocabulary // _BLOCK_BITS) * _BLOCK_BITS // _WORD_BITS, dtype=np.uint32)
        self.error: str | None = None
        self._matcher = matcher
        self._num_bytes = -(-vocabulary // _WORD_BITS) * _WORD_BITS // 8
        self._ends = _bits(eos_ids, len(self.allowed)) if ignore_eos else None
        self._taken: list[int] = []
        self._is_filled = False

    def take(self, token: int) -> None:
        """The next token of the answer. It is looked at by the next `fill`."""
        self._taken.append(token)
        self._is_filled = False

    def fill(self) -> None:
        """Find out what may come next, in any thread, while no step looks at it. Nothing may where there is an error."""
        if self._is_filled:
            return
        self._is_filled = True
        taken, self._taken = self._taken, []
        if self._matcher.consume_tokens(taken):
            self._matcher.unsafe_compute_mask_ptr(self.allowed.ctypes.data, self._num_bytes)
        if self._matcher.is_error():
            self.error = " ".join(self._matcher.get_error().split())
            self.allowed[:] = 0
        elif self._ends is not None:
            # Only where nothing else may come is the grammar over.
            others = self.allowed & ~self._ends
            if others.any():
                self.allowed[:] = others


class Masks:
    """Fills what the samplers of a step read, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "tsrun-masks")

    def fill(self, matchings: Sequence[Matching]) -> Future[None]:
        return self._thread.submit(_fill, matchings)

    def close(self) -> None:
        self._thread.shutdown()


def _fill(matchings: Sequence[Matching]) -> None:
    for matching in matchings:
        matching.fill()


def _bits(ids: Sequence[int], num_words: int) -> Words:
    bits = np.zeros(num_words, dtype=np.uint32)
    for index in ids:
        bits[index // _WORD_BITS] |= np.uint32(1 << index % _WORD_BITS)
    return bits
