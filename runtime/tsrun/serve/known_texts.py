"""Which tokens a text became, so that a conversation's next turn begins with the very tokens of its last one.

What a model wrote is not always what its text would be cut into: tokenized again it may miss the cache, and be another prompt. So the
tokens of each turn are kept under its text; the longest kept text that a new prompt begins with gives that part's tokens, and only the
rest is tokenized. Texts are found by their digests, by any session of their owner.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
MOST_BYTES = 256 * 2**20
_LEAST_TEXT = 64  # shorter ones are tokenized sooner than found


@dataclass(frozen=True, slots=True)
class Encoded:
    """ids: of the prompt; known: of them, those that were kept."""

    ids: list[int]
    known: int


class KnownTexts:
    """Forgets what was not used for longest. For several threads."""

    def __init__(self, encode: Callable[[str], list[int]], *, cuts: bool = True, most_bytes: int = MOST_BYTES) -> None:
        """encode: a text, or what follows one, to ids; cuts: whether the parts of a text may be encoded one by one."""
        self._encode = encode
        self._cuts = cuts
        self._most_bytes = most_bytes
        self._bytes = 0
        self._lock = Lock()
        self._kept: OrderedDict[bytes, tuple[int, Ids]] = OrderedDict()  # length of the text in bytes, and its tokens
        self._lengths: list[int] = []  # of kept texts, sorted
        self._counts = Counter[int]()

    def __len__(self) -> int:
        return len(self._kept)

    def encode(self, text: str, owner: str = "") -> Encoded:
        """owner: only what was kept for the same is found."""
        data = text.encode()
        found = self._find(data, owner) if self._cuts else None
        if found is None:
            return Encoded(self._encode(text), 0)
        length, ids = found
        rest = data[length:].decode()
        return Encoded([*ids.tolist(), *(self._encode(rest) if rest else [])], len(ids))

    def keep(self, text: str, ids: list[int], owner: str = "") -> None:
        data = text.encode()
        if len(data) < _LEAST_TEXT or len(data) + 4 * len(ids) > self._most_bytes:
            return
        key = _hash(owner, data).digest()
        with self._lock:
            if key in self._kept:
                self._forget(key)
            self._kept[key] = len(data), np.asarray(ids, dtype=np.int32)
            self._bytes += 4 * len(ids)
            self._counts[len(data)] += 1
            if self._counts[len(data)] == 1:
                insort(self._lengths, len(data))
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._kept)))

    def _find(self, data: bytes, owner: str) -> tuple[int, Ids] | None:
        with self._lock:
            lengths = self._lengths[: bisect_right(self._lengths, len(data))]
        digest, done = _hash(owner), 0
        view, digests = memoryview(data), []
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
        length, ids = self._kept.pop(key)
        self._bytes -= 4 * len(ids)
        self._counts[length] -= 1
        if not self._counts[length]:
            del self._counts[length]
            self._lengths.remove(length)


def _hash(owner: str, data: bytes = b"") -> Any:
    """Of a text of an owner."""
    return hashlib.blake2b(data, digest_size=16, key=hashlib.blake2b(owner.encode()).digest())
