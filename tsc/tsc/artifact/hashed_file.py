"""A new file that counts and hashes what is written to it, so that nothing is read back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_CHUNK = 1 << 24  # Linux writes at most 2 GiB at a time; smaller also keeps a keyboard interrupt prompt


class HashedFile:
    """Unbuffered; `close` waits until the bytes are on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._file = path.open("xb", buffering=0)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """All of `data`, or OSError."""
        view = memoryview(data).cast("B")
        while len(view):
            written = self._file.write(view[:_CHUNK])
            self._digest.update(view[:written])
            self.bytes += written
            view = view[written:]

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def abandon(self) -> None:
        self._file.close()
