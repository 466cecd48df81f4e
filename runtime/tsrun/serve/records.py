"""What became of one request, as the log, the metrics and traces tell of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tsrun.generation import Times
from tsrun.serve.usage import Usage

CLIENT_GONE = 499
"""The status of what nobody waited for: nginx's, since HTTP has none."""


class Outcome(Protocol):
    """One answer, so far. times: of its first token and its end, where these have come."""

    usage: Usage
    finish_reason: Any
    times: Times | None


@dataclass(slots=True)
class Record:
    """One request from its first byte to the last of its answer. operation: what it asks of a model, None for nothing; status: of HTTP, or
    of gRPC by its name; error: the kind of what went wrong, never its words, which may be the client's; began and ended: by the machine's
    monotonic clock."""

    request_id: str
    path: str
    headers: Mapping[bytes, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    key: str | None = None
    operation: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What traces say of the request: attributes by their names there."""
    outcomes: Sequence[Outcome] = ()
    status: int | str | None = None
    error: str | None = None

    @property
    def usage(self) -> Usage | None:
        """Of all its answers, which have one prompt as a rule."""
        if not self.outcomes:
            return None
        total = Usage(max(one.usage.prompt for one in self.outcomes))
        for one in self.outcomes:
            total.add(one.usage)
        return total

    @property
    def finish_reasons(self) -> list[str]:
        return [one.finish_reason for one in self.outcomes] if self.error is None else ["error" for _ in self.outcomes]

    @property
    def first_token_seconds(self) -> float | None:
        first = [one.times.first_token for one in self.outcomes if one.times is not None and one.times.first_token is not None]
        return min(first) - self.began if first else None

    @property
    def failed(self) -> bool:
        """By the server, not by what was asked."""
        if isinstance(self.status, int):
            return self.status >= 500 or (self.status == 200 and self.error is not None)
        return self.error is not None and self.status != "INVALID_ARGUMENT"

    def values(self, model: str) -> dict[str, Any]:
        """For the log."""
        usage, first = self.usage, self.first_token_seconds
        return {
            "request_id": self.request_id,
            "path": self.path,
            "status": self.status,
            "model": model if usage else None,
            "key": self.key,
            "prompt_tokens": usage and usage.prompt,
            "cached_tokens": usage and usage.cached,
            "completion_tokens": usage and usage.completion,
            "ttft_seconds": None if first is None else round(first, 6),
            "total_seconds": round(self.ended - self.began, 6),
            "finish_reason": ",".join(dict.fromkeys(self.finish_reasons)) or None,
            "error": self.error,
        }
