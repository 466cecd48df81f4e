from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import tsc.artifact.replace
from tsc.artifact import ArtifactWriter, hashed_file
from tsc.artifact.readable_json import dumps
from tsc.checkpoint import TensorInfo
from tsc.diagnostics import CompileError, MissingCapability
from tsrun.digests import PIECE_BYTES

_LAYOUT = {"a": TensorInfo("f32", (64,)), "b": TensorInfo("f32", (4, 4))}


def _write(path: Path, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    with ArtifactWriter(path) as writer:
        writer.write_json("program.json", {"format": 1, "seed": seed})
        writer.write_bytes("tokenizer/tokenizer.json", b"{}")
        streams = writer.weights(2, [_LAYOUT, _LAYOUT])
        for name, info in _LAYOUT.items():
            for stream in streams:
                stream.append(name, torch.rand(info.shape, generator=generator))
        return writer.finish({"model": {"name": "m"}, "ranks": 2})


def _tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_an_artifact_holds_what_the_architecture_says(tmp_path: Path) -> None:
    manifest = _write(tmp_path / "m.tsa")
    files = _tree(tmp_path / "m.tsa")
    assert json.loads(files.pop("manifest.json")) == manifest
    assert manifest["format"] == "tsa/2"
    assert manifest["files"] == {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    assert sorted(files) == ["program.json", "tokenizer/tokenizer.json", "weights/rank-00000.safetensors", "weights/rank-00001.safetensors"]
    assert safetensors.torch.load_file(tmp_path / "m.tsa/weights/rank-00001.safetensors")["b"].shape == (4, 4)
    assert os.listdir(tmp_path) == ["m.tsa"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    _write(tmp_path / "a.tsa")
    _write(tmp_path / "b.tsa")
    assert _tree(tmp_path / "a.tsa") == _tree(tmp_path / "b.tsa")


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_an_artifact_is_replaced_as_a_whole(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(tsc.artifact.replace, "_exchange", lambda one, other: False)
    path = tmp_path / "m.tsa"
    _write(path)
    (path / "stale").write_bytes(b"")
    old = _tree(path)
    with ArtifactWriter(path) as writer:
        writer.write_bytes("program.json", b"new")
        writer.finish({})
        assert _tree(path) == old
    assert sorted(_tree(path)) == ["manifest.json", "program.json"]
    assert os.listdir(tmp_path) == ["m.tsa"]


def test_when_the_last_rename_fails_the_old_artifact_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.tsa"
    _write(path)
    old = _tree(path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(tsc.artifact.replace, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(MissingCapability, match=r"m\.tsa: it cannot be written \(Input/output error\); .* is untouched"):
        _write(path, seed=1)
    assert _tree(path) == old
    assert os.listdir(tmp_path) == ["m.tsa"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_write_leaves_nothing(error: type[BaseException], there: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.tsa"
    if there:
        _write(path)
    before = _tree(tmp_path)

    def interrupted() -> None:
        with ArtifactWriter(path) as writer:
            writer.write_json("program.json", {})
            writer.weights(1, [_LAYOUT])[0].append("a", torch.zeros(64))
            raise error

    with pytest.raises(error):
        interrupted()
    assert _tree(tmp_path) == before
    assert os.listdir(tmp_path) == (["m.tsa"] if there else [])


def test_an_artifact_that_misses_a_tensor_is_not_written(tmp_path: Path) -> None:
    def incomplete() -> None:
        with ArtifactWriter(tmp_path / "m.tsa") as writer:
            writer.weights(1, [_LAYOUT])[0].append("a", torch.zeros(64))
            writer.finish({})

    with pytest.raises(ValueError, match="`b` was never written"):
        incomplete()
    assert os.listdir(tmp_path) == []


def test_a_forgotten_finish_is_our_bug_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), ArtifactWriter(tmp_path / "m.tsa"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["directory", "empty", "file", "link"])
def test_what_is_no_artifact_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("thesis")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    if kind == "directory":
        (path / "manifest.json").write_text('{"format": "other/1"}')
    with pytest.raises(CompileError, match="is no artifact; it is not replaced") as error:
        _write(path)
    assert [d.code for d in error.value.diagnostics] == ["TS0720"]
    assert os.listdir(tmp_path) == ["precious"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingCapability, match=r"gone/m\.tsa: cannot be written: No such file or directory \(.*gone\)"):
        _write(tmp_path / "gone" / "m.tsa")


def test_json_is_readable_and_means_the_same() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"graphs": [{"name": f"node{i}", "shape": ["T", 576]} for i in range(8)]}, "ä": "ß"}
    text = dumps(value)
    assert json.loads(text) == value
    assert text.splitlines()[1] == '  "b": [1, 2.5, null, true],'
    assert max(len(line) for line in text.splitlines()) <= 142
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"x": float("nan")})


WRITER = """
import sys, time
from tsc.artifact import ArtifactWriter, hashed_file
ArtifactWriter(sys.argv[1]).__enter__()
print("in", flush=True)
time.sleep(60)
"""


def test_what_a_killed_writer_left_is_taken_away_and_what_another_writes_is_not(tmp_path: Path) -> None:
    def begun(folder: str) -> subprocess.Popen[bytes]:
        """A writer in the middle of its work, in an old folder of that name."""
        before = set(tmp_path.iterdir())
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a.tsa")], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        (made,) = set(tmp_path.iterdir()) - before
        os.utime(made.rename(tmp_path / folder), (0, 0))
        return process

    with begun(".a.tsa.00000000.partial") as killed:
        killed.kill()
    (tmp_path / ".b.tsa.22222222.partial").mkdir()
    os.utime(tmp_path / ".b.tsa.22222222.partial", (0, 0))
    # The next writer clears up as it begins, and the one after it finds that one at work.
    with begun(".a.tsa.11111111.partial") as writing:
        assert sorted(p.name for p in tmp_path.iterdir()) == [".a.tsa.11111111.partial", ".b.tsa.22222222.partial"]
        with ArtifactWriter(tmp_path / "a.tsa") as writer:
            writer.finish({})
        writing.kill()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.tsa.11111111.partial", ".b.tsa.22222222.partial", "a.tsa"]


def test_the_digest_of_a_large_file_is_that_of_its_pieces_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_file, "_PIECE", 100)
    data = bytes(range(250))
    pieces = [hashlib.sha256(data[begin : begin + 100]).digest() for begin in (0, 100, 200)]
    for size, digest in (
        (100, pieces[0]),
        (200, hashlib.sha256(b"".join(pieces[:2])).digest()),
        (250, hashlib.sha256(b"".join(pieces)).digest()),
    ):
        file = hashed_file.HashedFile(tmp_path / str(size))
        for begin in range(0, size, 70):
            file.write(data[begin : min(begin + 70, size)])
        file.close()
        assert (file.bytes, file.sha256) == (size, digest.hex())
        assert (tmp_path / str(size)).read_bytes() == data[:size]


def test_writer_and_reader_agree_on_the_size_of_a_piece() -> None:
    assert hashed_file._PIECE == PIECE_BYTES
