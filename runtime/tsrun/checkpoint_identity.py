"""The identity of a checkpoint: the SHA-256 of its files' contents, wherever it lies and whenever it was copied.

Reading gigabytes for each start would be slow, so a file's digest is remembered under its device, inode, size and times;
a file that was touched is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from tsrun.errors import ArtifactError

_SUFFIXES = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt")
_REMEMBERED = 1000


def checkpoint_digest(checkpoint: Path, memory: Path) -> str:
    """One digest of a checkpoint, a GGUF file or a directory; `memory` is the file that remembers digests."""
    if checkpoint.is_file():
        files = [checkpoint]
    elif checkpoint.is_dir():
        files = sorted(file for file in checkpoint.iterdir() if file.is_file() and file.suffix in _SUFFIXES)
    else:
        raise ArtifactError(str(checkpoint), "does not exist", "give a NAME.tsa, a checkpoint directory or a .gguf file")
    if not files:
        raise ArtifactError(str(checkpoint), "holds no checkpoint", "give a directory with config.json and *.safetensors, or a .gguf file")
    known = _read(memory)
    digests = {file: known.get(_state(file)) or _digest(file) for file in files}
    fresh = {_state(file): digest for file, digest in digests.items()}
    if not fresh.items() <= known.items():
        _write(memory, {**known, **fresh})
    if checkpoint.is_file():
        return digests[checkpoint]
    listing = "".join(f"{file.name} {digest}\n" for file, digest in digests.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def _state(file: Path) -> str:
    status = file.stat()
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(memory: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text())
        if isinstance(known, dict):
            return known
    return {}


def _write(memory: Path, known: dict[str, str]) -> None:
    """Replace the file whole; of two processes that do so at once one is forgotten, and reads its files again."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=memory.parent, prefix=".digests-")
    with os.fdopen(descriptor, "w") as stream:
        json.dump(dict(list(known.items())[-_REMEMBERED:]), stream)
    os.replace(name, memory)
