"""Digests by pieces, and what is remembered of files that were read."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Sequence
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


def _memory_of(files: Sequence[Path], memory: Path) -> dict[str, str]:
    list(DigestMemory(memory).digests(files))
    known: dict[str, str] = json.loads(memory.read_text())
    return known


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("value", [5, None, ["a"], "", "a", "G" * 64, "A" * 64, "0" * 65], ids=str)
def test_what_can_be_no_digest_is_forgotten(tmp_path: Path, read: list[str], value: object) -> None:
    (tmp_path / "a").write_bytes(b"one")
    memory = tmp_path / "memory"
    known = _memory_of([tmp_path / "a"], memory)
    memory.write_text(json.dumps(dict.fromkeys(known, value)))
    read.clear()
    assert dict(DigestMemory(memory).digests([tmp_path / "a"])) == {tmp_path / "a": expected(b"one")}
    assert read == ["a"]
    assert json.loads(memory.read_text()) == known


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("data", [b"", b"5", b"[" * 200_000, b'{"a":' * 200_000, b'{"\xff": "\xff"}', b'{"\\ud800": "a"}'], ids=len)
def test_a_damaged_memory_is_an_empty_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "memory").write_bytes(data)
    assert list(_memory_of([tmp_path / "a"], tmp_path / "memory").values()) == [expected(b"one")]


@pytest.mark.usefixtures("settled")
def test_a_memory_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    os.mkfifo(tmp_path / "memory")
    assert list(_memory_of([tmp_path / "a"], tmp_path / "memory").values()) == [expected(b"one")]


@pytest.mark.usefixtures("settled")
def test_a_memory_that_contradicts_the_manifest_is_not_believed(toy_artifact: Path, tmp_path: Path, read: list[str]) -> None:
    memory = tmp_path / "memory"
    open_artifact(toy_artifact, memory=DigestMemory(memory))
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({state: digest[::-1] for state, digest in known.items()}))
    read.clear()
    open_artifact(toy_artifact, memory=DigestMemory(memory))
    assert len(read) == len(known)
    assert json.loads(memory.read_text()) == known


@pytest.mark.usefixtures("settled")
def test_who_reads_again_remembers_what_was_read(toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(toy_artifact, tmp_path / "copy.tsa"))
    monkeypatch.setattr(tsrun.digests, "_state", lambda status: str(status.st_ino))  # what rots changes no time
    memory = tmp_path / "memory"
    open_artifact(copy, memory=DigestMemory(memory))
    weights = copy / "weights/rank-00000.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    open_artifact(copy, memory=DigestMemory(memory))
    for read_again in (True, False):
        with pytest.raises(ArtifactError, match="edited"):
            open_artifact(copy, memory=DigestMemory(memory, read_again=read_again))


@pytest.mark.usefixtures("settled")
def test_a_memory_that_can_not_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "memory").mkdir()
    assert dict(DigestMemory(tmp_path / "memory").digests([tmp_path / "a"])) == {tmp_path / "a": expected(b"one")}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "memory"]


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
