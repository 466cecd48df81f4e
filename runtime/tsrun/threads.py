"""How many threads a rank computes with, and how they wait for each other."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let idle threads of a parallel region spin for a moment only, then sleep; to be called before torch is loaded.

    By default they spin for milliseconds, and so hold the core that the thread they wait for needs as soon as anything
    else runs on the machine, another rank for one. Sleeping at once is no better: waking costs more than a small
    matmul. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def share_of_threads(threads: int | None, ranks: int) -> int:
    """How many threads a rank computes with; by default the processors that this process may use are divided among its ranks."""
    if threads is not None:
        return threads
    if ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        return int(wanted) if wanted.isdigit() and int(wanted) else len(os.sched_getaffinity(0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return max(1, len(os.sched_getaffinity(0)) // here)
