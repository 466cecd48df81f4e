"""Choose the reader for a path."""

from __future__ import annotations

from pathlib import Path

from tsc.checkpoint.checkpoint import Checkpoint
from tsc.checkpoint.config import is_gguf
from tsc.checkpoint.gguf_checkpoint import GgufCheckpoint
from tsc.checkpoint.huggingface import HuggingFaceCheckpoint


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a Hugging Face directory or a .gguf file; CompileError (TS07xx) says what is wrong with it.

    Reads headers only, and checks the sizes of all files against them, so that a truncated download fails here.
    """
    source = Path(path)
    return GgufCheckpoint(source) if is_gguf(source) else HuggingFaceCheckpoint(source)
