"""The keys of compiled checkpoints and the store of entries; compiling itself is tested end to end elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsrun.cache_key import entry_name, key_parts, miss_line
from tsrun.checkpoint_identity import checkpoint_digest
from tsrun.compile_cache import CompileCache
from tsrun.errors import ArtifactError, CacheError

COMPILER = {"tsc": "0.1.0", "model": "llama", "source_sha256": "a" * 64, "config_sha256": "b" * 64}
PARTS = key_parts(COMPILER, checkpoint="c" * 64, mesh="tp=2", dtype="bf16", target="cpu")


def test_every_part_decides_the_name() -> None:
    names = {entry_name(PARTS), *(entry_name({**PARTS, part: "other"}) for part in PARTS)}
    assert len(names) == 1 + len(PARTS)
    assert set(PARTS) == {"tsc", "model", "source_sha256", "config_sha256", "checkpoint", "mesh", "dtype", "target"}


@given(st.permutations(sorted(PARTS.items())))
def test_the_order_of_parts_does_not_decide_the_name(items: list[tuple[str, str]]) -> None:
    assert entry_name(dict(items)) == entry_name(PARTS)


def test_options_left_out_are_a_value_of_their_own() -> None:
    parts = key_parts(COMPILER, checkpoint="c" * 64, mesh=None, dtype=None, target="cpu")
    assert (parts["mesh"], parts["dtype"]) == ("default", "default")


def test_a_first_miss_says_that_there_are_no_entries() -> None:
    assert miss_line(PARTS, []) == "compile cache: miss, there are no entries yet"


def test_a_miss_says_what_differs_from_the_nearest_entry() -> None:
    near, far = {**PARTS, "dtype": "f32"}, {**PARTS, "dtype": "f32", "mesh": "tp=4", "tsc": "0.0.9"}
    assert miss_line(PARTS, [far, near]) == "compile cache: miss, the nearest entry differs in dtype (f32 there, bf16 here)"


def test_a_miss_shortens_digests_and_knows_parts_that_older_entries_lack() -> None:
    older = {name: value for name, value in PARTS.items() if name != "target"} | {"checkpoint": "d" * 64}
    line = miss_line(PARTS, [older])
    assert "checkpoint (dddddddddddd there, cccccccccccc here)" in line
    assert "target (none there, cpu here)" in line
    assert "\n" not in line


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("not part of it")
    return folder


def test_a_copied_checkpoint_is_the_same_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "elsewhere"))
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("changed")
    assert checkpoint_digest(checkpoint, tmp_path / "a.json") == checkpoint_digest(copy, tmp_path / "b.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_edited_checkpoint_is_another(checkpoint: Path, tmp_path: Path, name: str) -> None:
    memory = tmp_path / "digests.json"
    before = checkpoint_digest(checkpoint, memory)
    size = (checkpoint / name).stat().st_size
    (checkpoint / name).write_bytes(b"x" * size)
    assert checkpoint_digest(checkpoint, memory) != before


def test_a_digest_is_remembered_and_a_lost_memory_is_no_error(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsrun.digests._SETTLED_SECONDS", 0.0)
    memory = tmp_path / "digests.json"
    digest = checkpoint_digest(checkpoint, memory)
    assert len(json.loads(memory.read_text())) == 2
    written = memory.stat().st_mtime_ns
    assert checkpoint_digest(checkpoint, memory) == digest
    assert memory.stat().st_mtime_ns == written
    memory.write_text("{")
    assert checkpoint_digest(checkpoint, memory) == digest


def test_a_renamed_gguf_file_is_the_same_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    memory = tmp_path / "digests.json"
    assert checkpoint_digest(tmp_path / "a.gguf", memory) == checkpoint_digest(tmp_path / "b.gguf", memory)


@pytest.mark.parametrize(("name", "said"), [("nowhere", "does not exist"), ("", "holds no checkpoint")])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        checkpoint_digest(tmp_path / name, tmp_path / "digests.json")


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache")


def add(cache: CompileCache, artifact: Path, parts: dict[str, str]) -> str:
    name = entry_name(parts)
    folder = cache.root / "entries" / name
    shutil.copytree(artifact, folder / "model.tsa")
    (folder / "key.json").write_text(json.dumps({"parts": parts, "checkpoint": "toy.gguf"}))
    return name


def test_entries_are_listed_the_one_used_last_first(cache: CompileCache, toy_artifact: Path) -> None:
    first, second = add(cache, toy_artifact, PARTS), add(cache, toy_artifact, {**PARTS, "dtype": "f32"})
    os.utime(cache.root / "entries" / second / "key.json", (1, 1))
    assert [entry.name for entry in cache.entries()] == [first, second]
    assert cache.entries()[0].parts == PARTS
    assert CompileCache(cache.root / "empty").entries() == []


def test_an_entry_is_found_by_the_beginning_of_its_name(cache: CompileCache, toy_artifact: Path) -> None:
    name = add(cache, toy_artifact, PARTS)
    add(cache, toy_artifact, {**PARTS, "dtype": "f32"})
    assert cache.find(name[:8]).name == name
    for prefix, count in (("", 2), ("zz", 0)):
        with pytest.raises(CacheError, match=f"names {count} entries"):
            cache.find(prefix)


def test_an_exported_artifact_is_whole_and_replaces_nothing(cache: CompileCache, toy_artifact: Path, tmp_path: Path) -> None:
    name, target = add(cache, toy_artifact, PARTS), tmp_path / "out" / "toy.tsa"
    cache.export(name, target)
    assert (target / "manifest.json").read_bytes() == (toy_artifact / "manifest.json").read_bytes()
    assert [file.name for file in target.parent.iterdir()] == ["toy.tsa"]
    with pytest.raises(CacheError, match="exists"):
        cache.export(name, target)


def test_pruning_removes_the_unfinished_the_damaged_and_what_is_asked_for(cache: CompileCache, toy_artifact: Path) -> None:
    good = add(cache, toy_artifact, PARTS)
    old = add(cache, toy_artifact, {**PARTS, "dtype": "f32"})
    damaged = add(cache, toy_artifact, {**PARTS, "dtype": "f64"})
    (cache.root / "entries" / damaged / "model.tsa" / "plan.json").write_text("{ }")
    os.utime(cache.root / "entries" / old / "key.json", (time.time() - 5 * 86400,) * 2)
    (cache.root / "entries" / "halfway").mkdir()
    (cache.root / "unfinished" / "name.x").mkdir(parents=True)
    removed = {line.partition(":")[0]: line for line in cache.prune(older_than_days=None, everything=False)}
    assert set(removed) == {damaged, "halfway", "name.x"}
    assert "plan.json: grown" in removed[damaged]
    assert [line.partition(":")[0] for line in cache.prune(older_than_days=3, everything=False)] == [old]
    assert [line.partition(":")[0] for line in cache.prune(older_than_days=None, everything=True)] == [good]


def test_pruning_leaves_a_compilation_under_way_alone(cache: CompileCache) -> None:
    (cache.root / "unfinished" / "name.x").mkdir(parents=True)
    with cache._lock("name", wait=None):
        assert cache.prune(older_than_days=None, everything=True) == []
    assert cache.prune(older_than_days=None, everything=True) == ["name.x: unfinished"]
