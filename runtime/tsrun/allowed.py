"""Which tokens a sampler may choose, as bits that it reads, and answers that may not end yet.

Dimensions: W words of bits, one bit a token of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np

from tsrun.sampler import Words

WORD_BITS = 32
_BLOCK_BITS = 128  # the sampler reads whole blocks


class Allowed(Protocol):
    """What one answer's tokens may be. bits [W]: of the next one, once it is filled; error: why there is none."""

    bits: Words
    error: str | None

    def take(self, token: int) -> None:
        """The next token of the answer. It is looked at by the next `fill`."""

    def fill(self) -> None:
        """Find out what may come next, in any thread, while no step looks at it."""

    def permits(self, token: int) -> bool:
        """Whether a token may come next: what greedy sampling asks first, since of one that is found out much faster than of all.
        False may also say that `fill` has to be asked."""


class Unended:
    """All tokens but those that end an answer, which is to have so many before; then all."""

    def __init__(self, min_tokens: int, *, vocabulary: int, end_ids: Collection[int]) -> None:
        self.bits = ~bits_of((), vocabulary)
        self.error: str | None = None
        self._left = min_tokens
        self._ends = bits_of(end_ids, vocabulary)

    def take(self, token: int) -> None:
        self._left -= 1

    def fill(self) -> None:
        if self._left > 0:
            self.bits &= ~self._ends
        else:
            self.bits |= self._ends

    def permits(self, token: int) -> bool:
        return self._left <= 0 or not has_bit(self._ends, token)


def bits_of(ids: Collection[int], vocabulary: int) -> Words:
    """[W], with the bits of these tokens."""
    bits = np.zeros(-(-vocabulary // _BLOCK_BITS) * _BLOCK_BITS // WORD_BITS, dtype=np.uint32)
    for index in ids:
        bits[index // WORD_BITS] |= np.uint32(1 << index % WORD_BITS)
    return bits


def has_bit(bits: Words, index: int) -> bool:
    return bool(bits[index // WORD_BITS] >> np.uint32(index % WORD_BITS) & 1)
