"""Which tokens a sampler may choose, as bits that it reads, and answers that may not end yet.

Dimensions: R rows of bits, the first of the next token, then one for what follows each draft; of each W words, one bit a token of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from tsrun.sampler import Words

WORD_BITS = 32
_BLOCK_BITS = 128  # the sampler reads whole blocks


class Allowed(Protocol):
    """What one answer's tokens may be. bits [R * W]: of the next ones, once they are filled; error: why there is none."""

    bits: Words
    error: str | None

    def take(self, token: int) -> None:
        """The next token of the answer. It is looked at by the next `fill`."""

    def fill(self, drafts: Sequence[int] = ()) -> None:
        """Find out what may come next, and after each of the drafts that may come, in any thread, while no step looks at it."""

    def accepts(self, drafts: Sequence[int]) -> int:
        """How many of them may come, one after the other."""

    def permits(self, token: int) -> bool:
        """Whether a token may come next: what greedy sampling asks first, since of one that is found out much faster than of all.
        False may also say that `fill` has to be asked."""


class Unended:
    """All tokens but those that end an answer, which is to have so many before; then all."""

    def __init__(self, min_tokens: int, *, vocabulary: int, end_ids: Collection[int], rows: int = 1) -> None:
        self.bits = ~np.tile(bits_of((), vocabulary), rows)
        self.error: str | None = None
        self._left = min_tokens
        self._ends = bits_of(end_ids, vocabulary)

    def take(self, token: int) -> None:
        self._left -= 1

    def fill(self, drafts: Sequence[int] = ()) -> None:
        for before in range(len(drafts) + 1):
            bits = self.bits[before * self._ends.size : (before + 1) * self._ends.size]
            if self._left > before:
                bits &= ~self._ends
            else:
                bits |= self._ends

    def accepts(self, drafts: Sequence[int]) -> int:
        return next((at for at, token in enumerate(drafts) if self._left > at and has_bit(self._ends, token)), len(drafts))

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
