"""How many tokens an API key may use in a minute: a bucket of so many, which fills again as the minute goes by.

A request takes what it may use before it begins, and gives back what it did not. One that may use more than the bucket holds waits until
it is full, and leaves a debt: so that no request is too large for ever, and the rate is kept over time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from tsrun.serve.http_errors import HttpError

_MINUTE = 60.0


class TokensLeft(msgspec.Struct):
    """What a key may use: `limit` a minute, `remaining` now, all of it in `reset_seconds`."""

    limit: int
    remaining: int
    reset_seconds: float

    def headers(self) -> dict[str, str]:
        """As OpenAI gives them."""
        return {
            "x-ratelimit-limit-tokens": str(self.limit),
            "x-ratelimit-remaining-tokens": str(self.remaining),
            "x-ratelimit-reset-tokens": _duration(self.reset_seconds),
        }


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class TokenLimits:
    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: in seconds."""
        self._limit = per_minute
        self._clock = clock
        self._buckets: dict[int, _Bucket] = {}

    def take(self, user: int, count: int) -> TokensLeft:
        """Raises HttpError 429, with the time after which there will be enough, where there is not."""
        bucket = self._filled(user)
        needed = min(count, self._limit)
        if bucket.level < needed:
            seconds = math.ceil((needed - bucket.level) * _MINUTE / self._limit)
            message = (
                f"this API key has {max(0, math.floor(bucket.level))} tokens left of its {self._limit} a minute, and the request may use "
                f"{count}; try again in {seconds} s"
            )
            headers = self._left(bucket).headers()
            raise HttpError(429, message, code="rate_limit_exceeded", retry_after=seconds, more_headers=headers)
        bucket.level -= count
        return self._left(bucket)

    def settle(self, user: int, taken: int, used: int) -> None:
        """What was taken was not all used, or more was."""
        bucket = self._filled(user)
        bucket.level = min(self._limit, bucket.level + taken - used)

    def _filled(self, user: int) -> _Bucket:
        """As it is now. There are as many as keys."""
        now = self._clock()
        bucket = self._buckets.setdefault(user, _Bucket(self._limit, now))
        bucket.level = min(self._limit, bucket.level + (now - bucket.at) * self._limit / _MINUTE)
        bucket.at = now
        return bucket

    def _left(self, bucket: _Bucket) -> TokensLeft:
        return TokensLeft(self._limit, max(0, math.floor(bucket.level)), (self._limit - bucket.level) * _MINUTE / self._limit)


def _duration(seconds: float) -> str:
    """`120ms`, `7s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < _MINUTE else f"{whole // 60}m{whole % 60}s"
