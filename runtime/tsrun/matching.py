"""Which tokens may come next in an answer that a grammar constrains. It is found out while the device computes what the model makes of
the token before, so that it is there when the logits are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from tsrun.allowed import WORD_BITS, Allowed, bits_of, has_bit
from tsrun.sampler import Words

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matching:
    """One answer's place in a grammar. ignored: tokens that do not come where others may; early: nor do these, before it has `min_tokens`.
    Where nothing else may come the grammar is over. rows: of bits, one more than there are drafts."""

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        vocabulary: int,
        ignored: Collection[int] = (),
        early: Collection[int] = (),
        min_tokens: int = 0,
        rows: int = 1,
    ) -> None:
        self._num_words = bits_of((), vocabulary).size
        self.bits: Words = np.zeros(rows * self._num_words, dtype=np.uint32)
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

    def fill(self, drafts: Sequence[int] = ()) -> None:
        """Nothing may come where there is an error."""
        if self._is_filled and not drafts:
            return
        self._is_filled = True
        self._consume()
        self._fill_row(self._matcher, 0)
        if not drafts:
            return
        further = self._matcher.deep_copy()  # what fails after a draft that does not come must not have happened
        for before, draft in enumerate(drafts[: self.accepts(drafts)], 1):
            further.consume_token(draft)
            self._fill_row(further, before)

    def accepts(self, drafts: Sequence[int]) -> int:
        if not self._consume():
            return 0
        valid = self._matcher.validate_tokens(list(drafts))
        return next((at for at, token in enumerate(drafts[:valid]) if has_bit(self._kept_out(at), token)), valid)

    def permits(self, token: int) -> bool:
        return self.accepts([token]) == 1

    def _fill_row(self, matcher: LLMatcher, before: int) -> None:
        """What may come after so many drafts, which a matcher has taken."""
        bits = self.bits[before * self._num_words : (before + 1) * self._num_words]
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, self._num_bytes)
        if matcher.is_error():
            self.error = " ".join(matcher.get_error().split())
            bits[:] = 0
            return
        others = bits & ~self._kept_out(before)
        if others.any():
            bits[:] = others

    def _kept_out(self, before: int) -> Words:
        return self._ignored if self._left <= before else self._early

    def _consume(self) -> bool:
        """False where there is an error."""
        taken, self._taken = self._taken, []
        return bool(self._matcher.consume_tokens(taken))


class Masks:
    """Fills what the samplers of a step read, in a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "tsrun-masks")

    def fill(self, answers: Sequence[tuple[Allowed, Sequence[int]]]) -> Future[None]:
        """Of each with its drafts."""
        return self._thread.submit(_fill, answers)

    def close(self) -> None:
        self._thread.shutdown()


def _fill(answers: Sequence[tuple[Allowed, Sequence[int]]]) -> None:
    for answer, drafts in answers:
        answer.fill(drafts)
