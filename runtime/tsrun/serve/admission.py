"""How much may be open at once, in all and of one API key, and how much a key may use: what is more is told to come again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tsrun.serve.http_errors import HttpError
from tsrun.serve.token_limits import TokenLimits, TokensLeft

_RETRY_SECONDS = 1


@dataclass(slots=True)
class _Entry:
    """A request's answers that are open, and the tokens that they took."""

    user: int
    count: int
    taken: int


class Admission:
    """Of one event loop."""

    def __init__(self, most: int, most_of_key: int | None = None, tokens: TokenLimits | None = None) -> None:
        """most: answers that run or wait; most_of_key: of them, those of one API key, None for as many."""
        self._most = most
        self._most_of_key = most_of_key
        self._tokens = tokens
        self._open = Counter[int]()  # by user, 0 where there are no keys
        self._entries: dict[str, _Entry] = {}

    def enter(self, entry: str, user: int, count: int, num_tokens: int) -> TokensLeft | None:
        """A request of so many answers, which may use so many tokens; what its key has left then, where that is limited. Raises HttpError
        429 where the key has or uses too much already, 503 where all have too much."""
        most = self._most if self._most_of_key is None or not user else min(self._most, self._most_of_key)
        if count > most:
            raise HttpError(400, f"{count} answers at once are more than the {most} that may be; ask for fewer", code="invalid_value")
        if self._most_of_key is not None and user and self._open[user] + count > self._most_of_key:
            message = f"this API key has {self._open[user]} answers under way, of at most {self._most_of_key}"
            raise HttpError(429, message, code="rate_limit_exceeded", retry_after=_RETRY_SECONDS)
        if self._open.total() + count > self._most:
            raise HttpError(503, f"{self._open.total()} answers are under way or wait, of at most {self._most}", retry_after=_RETRY_SECONDS)
        left = self._tokens.take(user, num_tokens) if self._tokens is not None and user else None
        self._open[user] += count
        self._entries[entry] = _Entry(user, count, num_tokens)
        return left

    def leave(self, entry: str, count: int, taken: int, used: int) -> None:
        """So many answers of a request have ended, which had taken and have used so many tokens. Nothing of one that did not enter."""
        found = self._entries.get(entry)
        if found is None:
            return
        count = min(count, found.count)
        self._open[found.user] -= count
        if self._tokens is not None and found.user:
            self._tokens.settle(found.user, taken, used)
        found.count -= count
        found.taken -= taken
        if not found.count and found.taken <= 0:
            del self._entries[entry]
