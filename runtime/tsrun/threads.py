"""How many threads a rank computes with."""

from __future__ import annotations

import os


def share_of_threads(threads: int | None, ranks: int) -> int:
    """How many threads a rank computes with; by default the processors that this process may use are divided among its ranks."""
    if threads is not None:
        return threads
    if ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return max(1, len(os.sched_getaffinity(0)) // here)
