"""How the threads of kernels wait for each other. Imports no torch."""

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
