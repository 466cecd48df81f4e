"""Digests of files, by pieces on all threads, and the memory of files that were read before.

The digest of a file of one piece is its SHA-256, that of a larger one the SHA-256 of its pieces' digests. A file is remembered under its
device, inode, size and times, so that only one that was touched since is read again. One that changed just now is not: the clock of a file
system is coarse, and a change that came after might show in nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE_BYTES = 1 << 26
"""As the compiler has it (tsc/artifact/hashed_file.py)."""
_REMEMBERED = 1000
_SETTLED_SECONDS = 2.0

Progress = Callable[[int, int], None]


def file_digests(files: Sequence[Path], progress: Progress | None = None) -> Iterator[tuple[Path, str]]:
    """Each file's digest, in order. `progress` is called with bytes read and bytes in all."""
    pieces = {file: list(_pieces(file.stat().st_size)) for file in files}
    total, done = sum(size for found in pieces.values() for _, size in found), 0
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "tsrun-digest")  # hashlib lets other threads run
    try:
        waiting = {file: [(size, pool.submit(_piece_digest, file, begin, size)) for begin, size in pieces[file]] for file in files}
        for file in files:
            digests = []
            for size, digest in waiting[file]:
                digests.append(digest.result())
                done += size
                if progress:
                    progress(done, total)
            yield file, (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, max(size, 1), PIECE_BYTES):
        yield begin, min(PIECE_BYTES, size - begin)


def _piece_digest(file: Path, begin: int, size: int) -> bytes:
    if size == 0:
        return hashlib.sha256(b"").digest()
    with file.open("rb", buffering=0) as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ, offset=begin) as piece:
        return hashlib.sha256(piece).digest()


class DigestMemory:
    """The digests of files that have not been touched since they were read, in a JSON file. A lost one costs time and nothing else."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _read(file)

    def digests(self, files: Sequence[Path], progress: Progress | None = None) -> Iterator[tuple[Path, str]]:
        """As `file_digests`; only files that are not known are read."""
        now = time.time_ns()
        states = {file: _state(file.stat()) for file in files}
        unknown = [file for file in files if states[file] not in self._known]
        yield from ((file, self._known[states[file]]) for file in files if file not in unknown)
        fresh = {}
        for file, digest in file_digests(unknown, progress):
            status = file.stat()
            if _state(status) == states[file] and now - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_SECONDS * 1e9:
                fresh[states[file]] = digest
            yield file, digest
        if fresh:
            self._remember(fresh)

    def _remember(self, fresh: Mapping[str, str]) -> None:
        """Replace the file whole; of two processes that do so at once one is forgotten, and reads its files again."""
        self._known |= fresh
        with contextlib.suppress(OSError):  # a folder that nobody may write
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._file.parent, prefix=".digests-")
            with os.fdopen(descriptor, "w") as stream:
                json.dump(dict(list(self._known.items())[-_REMEMBERED:]), stream)
            os.replace(name, self._file)


def _state(status: os.stat_result) -> str:
    """What changes when a file does; the size of a piece too, as another one gives another digest."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, PIECE_BYTES)
    return ":".join(map(str, parts))


def _read(memory: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
        if isinstance(known, dict):
            return known
    return {}
