"""The scripts of benchmarks/ keep up with the program: what they import is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
PEERS = ("vllm", "llama_cpp", "tokenspeed_scheduler", "matplotlib", "jax")
IMPORT = f"""
import importlib, sys
sys.path.insert(0, {str(FOLDER)!r})
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {PEERS!r}:
            raise
"""


def test_every_script_imports_what_there_is() -> None:
    names = [file.stem for file in sorted(FOLDER.glob("*.py"))] + [f"peers.{file.stem}" for file in sorted(FOLDER.glob("peers/*.py"))]
    assert len(names) > 30
    done = subprocess.run([sys.executable, "-c", IMPORT, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
