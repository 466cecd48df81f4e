"""Which requests are turns of one conversation, and whether a turn begins as an earlier one ended.

A session's key comes from the request itself. It is for statistics and for saying why a prompt was computed anew, never for what one
request may see of another. Clients send more than one conversation under it: titles, helpers with prompts of their own.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_SESSIONS = 4096
MOST_TURNS = 16
"""Of a session, that are remembered."""
_HEADERS = (b"x-session-id", b"x-session-affinity", b"x-claude-code-session-id")


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt by its length in bytes and its digest; num_tokens: that it had."""

    length: int
    digest: bytes
    num_tokens: int


def session_key(fields: Sequence[str | None], headers: Mapping[bytes, str]) -> str | None:
    """The first that is given: a field of the body, then a header."""
    return next((key for key in (*fields, *(headers.get(name) for name in _HEADERS)) if key), None)


class Sessions:
    """Forgets those that were not heard of for longest. All that it keeps is of one size, however long keys and prompts are."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, deque[Turn]] = OrderedDict()

    def note(self, key: str, text: str, num_tokens: int, *, goes_on: bool) -> int | None:
        """Put down a turn; return how many of its tokens an earlier turn had: 0 where it begins a conversation, None where none begins as
        it does though it goes on from an answer."""
        name = hashlib.blake2b(key.encode(), digest_size=16).digest()
        turns = self._turns.pop(name, None) or deque[Turn](maxlen=MOST_TURNS)
        data = text.encode()
        digests = _beginnings(data, [*(turn.length for turn in turns), len(data)])
        known = [turn for turn in turns if digests.get(turn.length) == turn.digest]
        changed = not known and goes_on and bool(turns)
        turns.append(Turn(len(data), digests[len(data)], num_tokens))
        self._turns[name] = turns
        while len(self._turns) > MOST_SESSIONS:
            self._turns.popitem(last=False)
        return None if changed else max((turn.num_tokens for turn in known), default=0)


def miss_reason(earlier: int | None, cached: int, page_size: int) -> str | None:
    """Why less was cached than an earlier turn left (what `Sessions.note` gave): `prefix_changed` where the prompt does not begin as that
    did, `evicted` where it does."""
    if earlier is None:
        return "prefix_changed"
    return "evicted" if cached < earlier // page_size * page_size else None


def _beginnings(data: bytes, lengths: Iterable[int]) -> dict[int, bytes]:
    """The digests of its first so many bytes, by how many; of those that it has."""
    digest, done, view = hashlib.blake2b(digest_size=16), 0, memoryview(data)
    found: dict[int, bytes] = {}
    for length in sorted(length for length in set(lengths) if length <= len(data)):
        digest.update(view[done:length])
        done, found[length] = length, digest.copy().digest()
    return found
