"""Whether files of artifacts that were read before are read again, to see that they are as the manifest says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tskernels.cache_folder import cache_folder

if TYPE_CHECKING:
    from tsrun.digests import DigestMemory

READ_AGAIN = "TSRUN_VERIFY"
"""The variable that `--verify` sets: the other ranks are processes."""


def files_read_before() -> DigestMemory:
    """Which files need not be read again: none where `--verify` says so."""
    from tsrun.digests import DigestMemory  # late: the command line reads READ_AGAIN alone

    return DigestMemory(cache_folder() / "digests.json", read_again=bool(os.environ.get(READ_AGAIN)))
