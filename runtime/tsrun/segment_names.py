"""Names of shared memory that would be left behind if all who know them ended: taken away by whoever of them ends last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_known: set[str] = set()


@contextmanager
def known(name: str) -> Iterator[None]:
    """Know a name for a while, and take it away then, whether or not there is a segment of it."""
    _known.add(name)
    try:
        yield
    finally:
        _unlink(name)
        _known.discard(name)


def take_away() -> None:
    """Take all known names away; for a thread that is about to end the process, whatever it is doing."""
    for name in list(_known):
        _unlink(name)


def _unlink(name: str) -> None:
    from tskernels._cpu import Segment  # late: most processes share nothing

    Segment.unlink(name)
