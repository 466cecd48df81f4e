"""Which tokens may come next in an answer that a grammar constrains. It is found out while the device computes what the model makes of
the token before, so that it is there when the logits are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tsrun.allowed import WORD_BITS, Allowed, bits_of, has_bit
from tsrun.sampler import Words

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matching:
    """One answer's place in a grammar. ignored: tokens that do not come where others may; early: nor do these, before it has `min_tokens`.
    Where nothing else may come the grammar is over."""

    def __init__(
        self, matcher: LLMatcher, *, vocabulary: int, ignored: Collection[int] = (), early: Collection[int] = (), min_tokens: int = 0
    ) -> None:
        self.bits: Words = bits_of((), vocabulary)
        self.error: str | None = None
        self._matcher = matcher
        self._num_bytes = -(-vocabulary // WORD_BITS) * WORD_BITS // 8
        self._ignored = bits_of(ignored, vocabulary)
        self._early = self._ignored | bits_of(early, vocabulary)
        self._left = min_tokens
        self._taken: list[int] = []
        self._is_filled = False

    def take(self, token: int) -> None:
        self._taken.append(token)
        self._left -= 1
        self._is_filled = False

    def fill(self) -> None:
        """Nothing may come where there is an error."""
        if self._is_filled:
            return
        self._is_filled = True
        if self._consume():
            self._matcher.unsafe_compute_mask_ptr(self.bits.ctypes.data, self._num_bytes)
        if self._matcher.is_error():
            self.error = " ".join(self._matcher.get_error().split())
            self.bits[:] = 0
            return
        others = self.bits & ~self._early
        if others.any():
            self.bits[:] = others

    def permits(self, token: int) -> bool:
        return self._consume() and not has_bit(self._early, token) and bool(self._matcher.validate_tokens([token]))

    def _consume(self) -> bool:
        """False where there is an error."""
        if self._left <= 0:
            self._early = self._ignored  # from now on
        taken, self._taken = self._taken, []
        return bool(self._matcher.consume_tokens(taken))


class Masks:
    """Fills what the samplers of a step read, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "tsrun-masks")

    def fill(self, answers: Sequence[Allowed]) -> Future[None]:
        return self._thread.submit(_fill, answers)

    def close(self) -> None:
        self._thread.shutdown()


def _fill(answers: Sequence[Allowed]) -> None:
    for answer in answers:
        answer.fill()
