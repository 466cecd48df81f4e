"""Which tokens a text became, so that a conversation's next turn begins with the very tokens of its last one.

What a model wrote is not always what its text would be cut into: tokenized again it may miss the cache, and be another prompt. So the
tokens of each turn are kept under its text; the longest kept text that a new prompt begins with gives that part's tokens, and only the
rest is tokenized. Texts are found by their digests, by any session of their owner.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import msgspec
import numpy as np

MOST_BYTES = 256 * 2**20
ENTRY_BYTES = 600
"""What a kept text takes beside its tokens: its digest, its length, and the places in which they are."""
_LEAST_TEXT = 64  # shorter ones are tokenized sooner than found
_ID = np.dtype(np.int32)


class KnownTokens(msgspec.Struct):
    """Of a text's first so many bytes, in UTF-8."""

    num_bytes: int
    packed: bytes

    def ids(self) -> list[int]:
        ids: list[int] = np.frombuffer(self.packed, _ID).tolist()
        return ids


class KeptText(msgspec.Struct):
    """A text by its digest, and its tokens."""

    digest: bytes
    num_bytes: int
    packed: bytes

    @classmethod
    def of(cls, text: str, ids: Sequence[int], owner: str = "") -> KeptText:
        """owner: who alone may find it."""
        data = text.encode()
        return cls(_hash(owner, data).digest(), len(data), np.asarray(ids, _ID).tobytes())


class KnownTexts:
    """Forgets what was not used for longest. For several threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._lock = Lock()
        self._kept: OrderedDict[bytes, KnownTokens] = OrderedDict()
        self._lengths: list[int] = []  # of kept texts, sorted
        self._counts = Counter[int]()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, text: KeptText) -> None:
        size = ENTRY_BYTES + len(text.packed)
        if text.num_bytes < _LEAST_TEXT or size > self._most_bytes:
            return
        with self._lock:
            if text.digest in self._kept:
                self._forget(text.digest)
            self._kept[text.digest] = KnownTokens(text.num_bytes, text.packed)
            self._bytes += size
            self._counts[text.num_bytes] += 1
            if self._counts[text.num_bytes] == 1:
                insort(self._lengths, text.num_bytes)
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._kept)))

    def find(self, text: str, owner: str = "") -> KnownTokens | None:
        """Of the longest text that it begins with; only what was kept for the same owner is found."""
        view = memoryview(text.encode())
        with self._lock:
            lengths = self._lengths[: bisect_right(self._lengths, len(view))]
        digest, done = _hash(owner), 0
        digests = []
        for length in lengths:
            digest.update(view[done:length])
            done = length
            digests.append(digest.copy().digest())
        with self._lock:
            for key in reversed(digests):
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
        return None

    def _forget(self, key: bytes) -> None:
        found = self._kept.pop(key)
        self._bytes -= ENTRY_BYTES + len(found.packed)
        self._counts[found.num_bytes] -= 1
        if not self._counts[found.num_bytes]:
            del self._counts[found.num_bytes]
            self._lengths.remove(found.num_bytes)


def _hash(owner: str, data: bytes = b"") -> Any:
    """Of a text of an owner."""
    return hashlib.blake2b(data, digest_size=16, key=hashlib.blake2b(owner.encode()).digest())
