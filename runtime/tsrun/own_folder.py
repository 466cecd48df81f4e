"""A folder for the sockets and files of a process: it goes when the process ends, or, where that was killed, when the next one starts."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "tsrun-"
_HELD: Final = "held"


class OwnFolder:
    """Open to its user alone. The process holds a lock on a file in it, which ends with the process, however that ends."""

    def __init__(self) -> None:
        _take_away_abandoned()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.path = Path(self._folder.name)
        # It gets its name when it is locked: one that nobody has locked is abandoned.
        being_locked = self.path / "being-locked"
        self._lock = os.open(being_locked, os.O_CREAT | os.O_RDONLY, 0o600)
        with suppress(OSError):  # where files can not be locked, nobody looks for abandoned ones
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            being_locked.rename(self.path / _HELD)

    def close(self) -> None:
        self._folder.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _take_away_abandoned() -> None:
    found: list[os.DirEntry[str]] = []
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:  # it need not be ours to list
        found = [entry for entry in entries if entry.name.startswith(_PREFIX)]
    for entry in found:
        with suppress(OSError):  # held by a process, taken away by another one meanwhile, or no folder of ours
            if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
            lock = os.open(Path(entry.path, _HELD), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(lock)
