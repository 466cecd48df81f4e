"""A stretch of a file as memory. One mapping a read: nothing stays mapped once the caller drops what it was given."""

from __future__ import annotations

import mmap
from pathlib import Path


def map_range(path: Path, offset: int, size: int) -> tuple[mmap.mmap, int]:
    """A private mapping that holds `size` bytes at `offset`, and where in it they start.

    Private, so that torch may hold it as writable memory; the file itself is never written.
    """
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), offset - start + size, access=mmap.ACCESS_COPY, offset=start)
    return mapping, offset - start
