"""How much may be open at once, in all and of one API key: what is more is told to come again, before it costs anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tsrun.serve.http_errors import HttpError

_RETRY_SECONDS = 1


@dataclass
class Admission:
    """most: answers that run or wait; most_of_key: of them, those of one API key, None for as many."""

    most: int
    most_of_key: int | None = None
    open: Counter[int] = field(default_factory=Counter)  # by user, 0 where there are no keys

    def enter(self, user: int, count: int) -> None:
        """Raises HttpError 429 where the key has too many already, 503 where all have."""
        if self.most_of_key is not None and user and self.open[user] + count > self.most_of_key:
            message = f"this API key has {self.open[user]} answers under way, of at most {self.most_of_key}"
            raise HttpError(429, message, code="rate_limit_exceeded", retry_after=_RETRY_SECONDS)
        if self.open.total() + count > self.most:
            raise HttpError(503, f"{self.open.total()} answers are under way or wait, of at most {self.most}", retry_after=_RETRY_SECONDS)
        self.open[user] += count

    def leave(self, user: int) -> None:
        self.open[user] -= 1
