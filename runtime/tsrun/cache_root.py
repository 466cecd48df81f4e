"""Where things are kept from one run to the next: $TSC_CACHE, or the user's cache directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsrun.digests import DigestMemory

READ_AGAIN = "TSRUN_VERIFY"
"""The variable that `--verify` sets: the other ranks are processes."""


def default_root() -> Path:
    import platformdirs

    return Path(os.environ.get("TSC_CACHE") or platformdirs.user_cache_dir("tsc-llm"))


def files_read_before() -> DigestMemory | None:
    """Which files of artifacts need not be read again to open them; None where all are to be."""
    from tsrun.digests import DigestMemory  # late: the command line reads READ_AGAIN alone

    return None if os.environ.get(READ_AGAIN) else DigestMemory(default_root() / "digests.json")
