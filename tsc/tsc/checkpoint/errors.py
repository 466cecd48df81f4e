"""The codes that a checkpoint fails with; each failure is one line that names the file."""

from __future__ import annotations

from pathlib import Path

from tsc.diagnostics import CompileError, Diagnostic

NOT_A_CHECKPOINT = "TS0701"  # nothing there, or a directory without config.json
NOT_JSON = "TS0702"
DAMAGED_SAFETENSORS = "TS0703"
MISSING_SHARD = "TS0704"
DAMAGED_GGUF = "TS0705"
UNKNOWN_ARCHITECTURE = "TS0706"
UNKNOWN_TOKENIZER = "TS0707"
UNKNOWN_TENSOR_TYPE = "TS0708"
UNKNOWN_TENSOR = "TS0709"
UNKNOWN_ROPE = "TS0710"
UNSUPPORTED_LAYOUT = "TS0711"  # split, big-endian, a version that nobody writes any more
UNKNOWN_QUANTIZATION = "TS0712"  # a method, or what it asks for, or tensors that do not fit together


def failure(code: str, path: Path, what: str, *fixes: str) -> CompileError:
    """The error to raise about the file or directory `path`."""
    return CompileError(Diagnostic(code, f"{path}: {what}", fixes=fixes))
