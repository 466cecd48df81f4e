"""A new file that counts and hashes what is written to it, so that nothing is read back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_CHUNK = 1 << 24
"""Bytes written at a time, at a multiple of as many. Written so, a file lies in the page cache in huge pages, which whoever maps it then
has: weights are read at up to twice the speed. It also keeps a keyboard interrupt prompt."""


_PIECE = 1 << 26
"""A larger file's digest is that of the digests of its pieces of so many bytes, so that a reader hashes them on all threads."""


class HashedFile:
    """Buffered; `close` waits until the bytes are on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._piece = hashlib.sha256()
        self._pieces: list[bytes] = []  # digests of those before
        self._file = path.open("xb", buffering=0)
        self._waiting = bytearray()

    @property
    def sha256(self) -> str:
        if not self._pieces:
            return self._piece.hexdigest()
        return hashlib.sha256(b"".join([*self._pieces, self._piece.digest()])).hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """All of `data`, now or later, or OSError."""
        view = memoryview(data).cast("B")
        self._hash(view)
        if self._waiting:
            missing = _CHUNK - len(self._waiting)
            self._waiting += view[:missing]
            view = view[missing:]
            if len(self._waiting) < _CHUNK:
                return
            self._put(memoryview(bytes(self._waiting)))
            self._waiting.clear()
        whole = len(view) // _CHUNK * _CHUNK
        self._put(view[:whole])
        self._waiting += view[whole:]

    def close(self) -> None:
        if not self._file.closed:
            self._put(memoryview(bytes(self._waiting)))
            self._waiting.clear()
            os.fsync(self._file.fileno())
            self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _hash(self, view: memoryview) -> None:
        while len(view):
            if self.bytes and self.bytes % _PIECE == 0:
                self._pieces.append(self._piece.digest())
                self._piece = hashlib.sha256()
            part = view[: _PIECE - self.bytes % _PIECE]
            self._piece.update(part)
            self.bytes += len(part)
            view = view[len(part) :]

    def _put(self, view: memoryview) -> None:
        while len(view):
            view = view[self._file.write(view[:_CHUNK]) :]
