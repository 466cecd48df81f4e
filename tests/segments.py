"""Segments of shared memory that ranks leave behind."""

from __future__ import annotations

import os
import time

_SECONDS = 5.0  # until all ranks have opened one, it has its name; other tests that run meanwhile have some, too


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("tsrun-")}


def left_behind(before: set[str]) -> set[str]:
    """What came after `before` and stays."""
    found = segments() - before
    deadline = time.monotonic() + _SECONDS
    while found and time.monotonic() < deadline:
        time.sleep(0.05)
        found &= segments()
    return found
