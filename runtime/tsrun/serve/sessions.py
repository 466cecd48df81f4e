"""Which requests are turns of one conversation, and whether a turn begins as the one before it ended.

A session's key comes from the request itself. It is for statistics and for saying why a prompt was computed anew, never for what one
request may see of another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_SESSIONS = 4096
_HEADERS = (b"x-session-id", b"x-session-affinity", b"x-claude-code-session-id")


@dataclass(frozen=True, slots=True)
class Turn:
    """The prompt of a session's last request."""

    text: str
    num_tokens: int


def session_key(fields: Sequence[str | None], headers: Mapping[bytes, str]) -> str | None:
    """The first that is given: a field of the body, then a header."""
    return next((key for key in (*fields, *(headers.get(name) for name in _HEADERS)) if key), None)


class Sessions:
    """Forgets those that were not heard of for longest."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, Turn] = OrderedDict()

    def note(self, key: str, text: str, num_tokens: int) -> Turn | None:
        """Put down a turn; return the one before it."""
        before = self._turns.pop(key, None)
        self._turns[key] = Turn(text, num_tokens)
        while len(self._turns) > MOST_SESSIONS:
            self._turns.popitem(last=False)
        return before


def miss_reason(before: Turn | None, text: str, cached: int, page_size: int) -> str | None:
    """Why less was cached than the turn before left: `prefix_changed` where the prompts differ within it, `evicted` where they do not."""
    if before is None:
        return None
    if not text.startswith(before.text):
        return "prefix_changed"
    whole_pages = before.num_tokens // page_size * page_size
    return "evicted" if cached < whole_pages else None
