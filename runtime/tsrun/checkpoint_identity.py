"""The identity of a checkpoint: a digest of its files' contents, wherever it lies and whenever it was copied."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tsrun.digests import DigestMemory
from tsrun.errors import ArtifactError

_SUFFIXES = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt")


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
    digests = dict(DigestMemory(memory).digests(files))
    if checkpoint.is_file():
        return digests[checkpoint]
    listing = "".join(f"{file.name} {digests[file]}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()
