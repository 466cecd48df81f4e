"""`tsrun generate CHECKPOINT` for real: compiled once, found again, and a miss says what differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def tsrun(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tsrun", *arguments],
        env={**os.environ, "TSC_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def generate(cache: Path, checkpoint: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return tsrun(cache, "generate", str(checkpoint), "-p", "the quick", "--max-tokens", "6", "--ignore-eos", "--json", *options)


def token_ids(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr
    ids = json.loads(done.stdout)["token_ids"]
    assert isinstance(ids, list)
    return ids


def test_a_checkpoint_is_compiled_once_and_a_miss_names_what_differs(cache: Path, checkpoint: Path) -> None:
    first = generate(cache, checkpoint)
    assert "miss, there are no entries yet" in first.stderr
    again = generate(cache, checkpoint)
    assert "miss" not in again.stderr
    assert token_ids(again) == token_ids(first)
    other = generate(cache, checkpoint, "--dtype", "f32", "--max-context", "64")
    assert "differs in dtype" in other.stderr
    assert "--context" not in other.stderr  # the rope of this model is the same for any
    assert len(token_ids(other)) == 6
    listing = tsrun(cache, "cache", "ls")
    assert listing.returncode == 0
    assert len(listing.stdout.strip().splitlines()) >= 2


@pytest.mark.slow
def test_changed_weights_are_another_key(cache: Path, checkpoint: Path, tmp_path: Path) -> None:
    from tests.e2e.conftest import write_checkpoint

    generate(cache, checkpoint)
    changed = generate(cache, write_checkpoint(tmp_path / "other", seed=1))
    assert "differs in checkpoint" in changed.stderr


def test_processes_that_compile_the_same_at_once_agree(cache: Path, checkpoint: Path) -> None:
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: generate(cache, checkpoint), range(3)))
    assert len({tuple(token_ids(r)) for r in runs}) == 1
    assert tsrun(cache, "cache", "verify").returncode == 0


def test_a_checkpoint_that_cannot_be_compiled_leaves_no_entry(cache: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "intermediate_size": 47}))
    done = generate(cache, checkpoint)
    assert done.returncode == 1
    assert "TS0731" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(cache.rglob("*.tsa"))


@pytest.mark.slow
def test_two_ranks_give_the_tokens_of_one(cache: Path, checkpoint: Path) -> None:
    one = token_ids(generate(cache, checkpoint, "--dtype", "f32"))
    assert token_ids(generate(cache, checkpoint, "--dtype", "f32", "--mesh", "tp=2")) == one
