"""Digests of files, by pieces on all threads, and the memory of files that were read before.

The digest of a file of one piece is its SHA-256, that of a larger one the SHA-256 of its pieces' digests. A file is remembered under its
device, inode, size and times, so that only one that was touched since is read again. One that changed just now is not: the clock of a file
system is coarse, and a change that came after might show in nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

PIECE_BYTES = 1 << 26
"""As the compiler has it (tsc/artifact/hashed_file.py)."""
_REMEMBERED = 1000
_SETTLED_SECONDS = 2.0
_DIGEST = re.compile("[0-9a-f]{64}")

Progress = Callable[[int, int], None]
Digests = Generator[tuple[Path, str], None, None]


def file_digests(files: Sequence[Path], progress: Progress | None = None) -> Digests:
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
    """The digests of files that have not been touched since they were read, in a JSON file. A lost one costs time and nothing else.

    read_again: read all files, and remember what was read.
    """

    def __init__(self, file: Path, *, read_again: bool = False) -> None:
        self._file = file
        self._known = _read(file)
        self._read_again = read_again

    def digests(self, files: Sequence[Path], progress: Progress | None = None, *, wanted: Mapping[Path, str] | None = None) -> Digests:
        """As `file_digests`; only files that are not known are read, and those that are remembered with another digest than the wanted."""
        now = time.time_ns()
        states = {file: _state(file.stat()) for file in files}
        known = {} if self._read_again else {file: self._known[states[file]] for file in files if states[file] in self._known}
        if wanted is not None:  # the memory may be what is wrong
            known = {file: digest for file, digest in known.items() if digest == wanted[file]}
        yield from known.items()
        fresh: dict[str, str] = {}
        try:
            for file, digest in file_digests([file for file in files if file not in known], progress):
                status = file.stat()
                if _state(status) == states[file] and now - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_SECONDS * 1e9:
                    fresh[states[file]] = digest
                yield file, digest
        finally:  # also where whoever asks stops at a file that is not as it should be
            if fresh:
                self._remember(fresh)

    def _remember(self, fresh: dict[str, str]) -> None:
        """Replace the file whole; of two processes that do so at once one is forgotten, and reads its files again."""
        self._known = {state: digest for state, digest in self._known.items() if state not in fresh} | fresh  # the latest last
        with contextlib.suppress(OSError):  # a folder that nobody may write
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._file.parent, prefix=".digests-")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(msgspec.json.encode(dict(list(self._known.items())[-_REMEMBERED:])))
                os.replace(name, self._file)
            finally:
                Path(name).unlink(missing_ok=True)


def _state(status: os.stat_result) -> str:
    """What changes when a file does; the size of a piece too, as another one gives another digest."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, PIECE_BYTES)
    return ":".join(map(str, parts))


def _read(memory: Path) -> dict[str, str]:
    """What a file remembers, less what can be no digest."""
    with contextlib.suppress(OSError, ValueError, RecursionError, msgspec.DecodeError):
        if memory.is_file():  # a pipe would be waited for
            known = msgspec.json.decode(memory.read_bytes(), type=dict[str, str])
            return {state: digest for state, digest in known.items() if _DIGEST.fullmatch(digest)}
    return {}
