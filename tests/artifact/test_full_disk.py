from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_WRITE = """
import resource, sys, torch
from tsc.artifact import ArtifactWriter
from tsc.checkpoint import TensorInfo
from tsc.diagnostics import MissingCapability
path, size, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with ArtifactWriter(path) as writer:
        [stream] = writer.weights(1, [{"w": TensorInfo("f32", (size // 4,))}])
        stream.append("w", torch.full((size // 4,), float(size)))
        writer.finish({"size": size})
except MissingCapability as error:
    print(error)
    sys.exit(3)
"""


def _write(path: Path, size: int, limit: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _WRITE, path, str(size), str(limit)], capture_output=True, text=True, check=False)


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a tmpfs takes root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def _fails_and_leaves_the_old_one(path: Path, size: int, limit: int, reason: str) -> None:
    first = _write(path, 1 << 20)
    assert first.returncode == 0, first.stderr
    before = _tree(path.parent)
    second = _write(path, size, limit)
    assert second.returncode == 3, second.stderr
    assert second.stdout == f"{path}: the disk is full ({reason}); the artifact that was there is untouched\n"
    assert _tree(path.parent) == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_artifact_byte_for_byte(small_disk: Path) -> None:
    _fails_and_leaves_the_old_one(small_disk / "m.tsa", 16 << 20, 0, "No space left on device")


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    _fails_and_leaves_the_old_one(tmp_path / "m.tsa", 16 << 20, 4 << 20, "File too large")


def test_a_full_disk_without_an_old_artifact_leaves_nothing(tmp_path: Path) -> None:
    run = _write(tmp_path / "m.tsa", 16 << 20, 4 << 20)
    assert run.returncode == 3
    assert run.stdout.endswith("nothing is left of it\n")
    assert os.listdir(tmp_path) == []
