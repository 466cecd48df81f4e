"""Where this user's compiled artifacts and measurements are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TSC_CACHE, or where the system keeps what a user can do without. It may not exist yet."""
    import platformdirs

    return Path(os.environ.get("TSC_CACHE") or platformdirs.user_cache_dir("tsc-llm"))
