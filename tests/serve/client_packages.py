"""Clients in other languages and with requirements of their own, installed once a user, outside of the repository.

`clients/package.json`, `clients/requirements*.txt` and `clients/*.lock.txt` pin them; a lock is complete. Node itself is a package too,
since the clients need a newer one than systems have.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest

CLIENTS = Path(__file__).parent / "clients"


def node_folder() -> Path:
    """The `node_modules` that has the clients of package.json; skips where they can not be installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs npm and node")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the pinned node is for Linux on x86-64")
    wanted = CLIENTS / "package.json"
    with _installing("packages", wanted) as (folder, is_new):
        if is_new:
            shutil.copy(wanted, folder)
            _run(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--loglevel", "error"])
    return folder / "node_modules"


def python_folder(requirements: str = "requirements.txt") -> Path:
    """The folder of commands of an environment that has the clients of a list in `clients/`."""
    wanted = CLIENTS / requirements
    with _installing(wanted.stem, wanted) as (folder, is_new):
        if is_new:
            _run([sys.executable, "-m", "venv", folder])
            alone = ["--no-deps"] if requirements.endswith(".lock.txt") else []
            _run([folder / "bin/pip", "install", "--quiet", "--no-compile", *alone, "-r", wanted])
    return folder / "bin"


@contextmanager
def _installing(kind: str, wanted: Path) -> Iterator[tuple[Path, bool]]:
    """A folder for what a file lists, held while it is filled, so that tests that run at once fill it once; whether it is to be filled."""
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]
    root = Path(platformdirs.user_cache_path("tsc-tests"))
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{kind}-{digest}"
    done = folder / "installed"
    with (root / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            yield folder, False
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder, True
        done.touch()


def _run(command: Sequence[str | Path]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def client_environment(commands: Path, home: Path) -> dict[str, str]:
    """For a client: its own home, nothing of the user's settings, and the folder of installed commands first."""
    home.mkdir(exist_ok=True)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
