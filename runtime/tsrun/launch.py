"""Whether a launcher such as torchrun started this process, and as which rank."""

from __future__ import annotations

import os


def launched() -> tuple[int, int] | None:
    """Rank and world size when a launcher such as torchrun started this process as one of several ranks."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
