"""A working directory with tiny models, and `tsc` in this process. The repository's root goes on the path for `tests.cli.tiny`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from tsc.cli import main

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cli.tiny import ROOT, write_checkpoint, write_gguf

Tsc = Callable[..., tuple[int, str]]
"""Arguments to exit code and output, both streams together."""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `llama.ts`, `checkpoint/` and `tiny.gguf`, which are the same architecture in the same sizes."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models" / "llama.ts", tmp_path)
    write_checkpoint(tmp_path / "checkpoint")
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path


@pytest.fixture
def tsc() -> Tsc:
    """Runs `tsc` in this process. A traceback is never acceptable."""

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, arguments, prog_name="tsc")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert "internal" not in result.output
        return result.exit_code, result.output

    return run
