"""Prompt lookup (csrc/lookup.hpp): drafts are what followed the same tokens before, in a request's own text or in others' answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import numpy as np

from tsrun._core import Lookup, Outputs
from tsrun.limits import MOST_DRAFTS

_KEPT_TOKENS = 2**14  # of what was written lately, for each salt
_KEPT_SALTS = 32


class LookupDrafter:
    """Of one request. ends: tokens that end its answer, which are never drafted."""

    def __init__(self, prompt: Sequence[int], outputs: Outputs, ends: Collection[int]) -> None:
        self._prompt, self._outputs, self._ends = prompt, outputs, ends
        self._lookup: Lookup | None = None  # not before its first token: of who waits nothing is asked
        self._answer: list[int] = []

    @property
    def has_begun(self) -> bool:
        return self._lookup is not None

    def take(self, tokens: Sequence[int]) -> None:
        if self._lookup is None:
            self._lookup = Lookup(np.asarray(self._prompt, dtype=np.int32), self._outputs)
        for token in tokens:
            self._lookup.take(token)
        self._answer += tokens

    def draft(self, most: int) -> tuple[list[int], list[float]]:
        if self._lookup is None:
            return [], []
        tokens, chances = self._lookup.draft(most)
        for index, token in enumerate(tokens):
            if token in self._ends:
                return tokens[:index], chances[:index]
        return tokens, chances

    def expected(self) -> list[float]:
        return self.draft(MOST_DRAFTS)[1][1:]

    def close(self) -> None:
        if self._answer:
            self._outputs.append(np.array(self._answer, dtype=np.int32))


class LookupDrafters:
    """The drafters of an engine. Requests of one salt share what they wrote; no others do."""

    def __init__(self) -> None:
        self._outputs: OrderedDict[str | None, Outputs] = OrderedDict()

    def drafter(self, prompt: Sequence[int], salt: str | None, ends: Collection[int]) -> LookupDrafter:
        if salt not in self._outputs:
            self._outputs[salt] = Outputs(_KEPT_TOKENS)
            if len(self._outputs) > _KEPT_SALTS:
                self._outputs.popitem(last=False)
        self._outputs.move_to_end(salt)
        return LookupDrafter(prompt, self._outputs[salt], ends)
