"""How far an engine has come with its artifact, while nobody can ask it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tsrun import generate

log = logging.getLogger("tsrun.serve.engine")
_EVERY_SECONDS = 5.0


def loading_progress() -> Callable[[int, int], None]:
    """Percent in place on a terminal; elsewhere an event now and then. Called with bytes that were verified, and all."""
    shown = generate.loading_progress()
    if shown is not None:
        return shown
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done < total and now - told >= _EVERY_SECONDS:
            told = now
            log.info("loading: %d %% of %.1f GB", 100 * done // total, total / 1e9)

    return progress
