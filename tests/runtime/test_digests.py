"""Digests by pieces, and what is remembered of files that were read."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import time
from pathlib import Path

import pytest
from tests.runtime.toy import Toy, write_artifact

import tsrun.digests
from tsrun.artifact import open_artifact
from tsrun.cli import run
from tsrun.digests import DigestMemory, file_digests
from tsrun.errors import ArtifactError
from tsrun.verification import READ_AGAIN


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsrun.digests, "PIECE_BYTES", mmap.ALLOCATIONGRANULARITY)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tsrun.digests, "_SETTLED_SECONDS", -1.0)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from here on, once a piece."""
    names = []
    digest = tsrun.digests._piece_digest

    def noted(file: Path, begin: int, size: int) -> bytes:
        names.append(file.name)
        return digest(file, begin, size)

    monkeypatch.setattr(tsrun.digests, "_piece_digest", noted)
    return names


def expected(data: bytes) -> str:
    size = tsrun.digests.PIECE_BYTES
    pieces = [hashlib.sha256(data[begin : begin + size]).digest() for begin in range(0, len(data), size)]
    return hashlib.sha256(data).hexdigest() if len(pieces) < 2 else hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("pieces", "more"), [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (3, 0), (3, 5)])
def test_a_file_of_several_pieces_has_the_digest_of_their_digests(tmp_path: Path, pieces: int, more: int) -> None:
    data = os.urandom(pieces * tsrun.digests.PIECE_BYTES + more)
    (tmp_path / "a").write_bytes(data)
    seen: list[tuple[int, int]] = []
    assert dict(file_digests([tmp_path / "a"], lambda done, total: seen.append((done, total)))) == {tmp_path / "a": expected(data)}
    assert seen[-1] == (len(data), len(data))


@pytest.mark.usefixtures("settled")
def test_what_was_read_before_is_not_read_again(toy_artifact: Path, tmp_path: Path, read: list[str]) -> None:
    files = sorted(file for file in toy_artifact.rglob("*") if file.is_file())
    first = dict(DigestMemory(tmp_path / "memory").digests(files))
    assert set(read) == {file.name for file in files}
    read.clear()
    assert dict(DigestMemory(tmp_path / "memory").digests(files)) == first
    assert not read


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"one")
    memory = tmp_path / "memory"
    assert dict(DigestMemory(memory).digests([tmp_path / "a"])) == {tmp_path / "a": expected(b"one")}
    (tmp_path / "a").write_bytes(b"two")
    assert dict(DigestMemory(memory).digests([tmp_path / "a"])) == {tmp_path / "a": expected(b"two")}
    assert read == ["a", "a"]


@pytest.mark.usefixtures("settled")
def test_an_edit_that_keeps_size_and_time_is_found(toy_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toy_artifact, tmp_path / "copy.tsa"))
    memory = tmp_path / "memory"
    open_artifact(copy, memory=DigestMemory(memory))
    weights = copy / "weights/rank-00000.safetensors"
    before = weights.stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="edited"):
        open_artifact(copy, memory=DigestMemory(memory))


@pytest.mark.usefixtures("settled")
def test_a_memory_that_can_not_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "file").write_bytes(b"")
    assert dict(DigestMemory(tmp_path / "file" / "memory").digests([tmp_path / "a"])) == {tmp_path / "a": expected(b"one")}


@pytest.mark.usefixtures("settled")
def test_a_second_start_reads_nothing_unless_it_is_asked_to(
    toy: Toy, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    path = write_artifact(toy, tmp_path / "toy.tsa")
    files = sorted(file.name for file in path.rglob("*") if file.is_file() and file.name != "manifest.json")
    command = ["generate", str(path), "-p", "a", "--max-tokens", "1"]
    for options, expected_reads in (([], files), ([], []), (["--verify"], files)):
        with monkeypatch.context() as patch:
            patch.setenv(READ_AGAIN, "")  # so that what the command sets ends here
            read.clear()
            assert run([*command, *options]) == 0
            assert sorted(read) == expected_reads
