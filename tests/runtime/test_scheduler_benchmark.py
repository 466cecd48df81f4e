"""`benchmarks/scheduler.py` runs every case of ours and writes what it found. Times are never asserted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_case_has_figures(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "scheduler.py"), "--quick", "--no-peers", "--json", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(written.read_text())
    assert found["versions"].keys() == {"ours"}
    assert found["machine"]["processor"]
    assert list(found["cases"]) == [
        *(f"decode-{size}" for size in ("64-8192", "64-65536", "256-1024", "256-8192", "256-65536", "1024-1024", "1024-8192")),
        *("hashing", "admission", "abort", "waiting", "admission-storm", "eviction-storm", "cancels", "drafts", "hybrid", "depth-2"),
    ]
    for name, by_contender in found["cases"].items():
        ours = by_contender["ours"]
        assert all(series["samples"] and len(series["rounds"]) == 2 for series in ours["series"].values()), name
        assert all(isinstance(figure["value"], float) for figure in ours["figures"].values()), name
    goals = {re.sub(":.*", "", goal["label"]) for goal in found["goals"]}
    assert {"p99 / median, CPU", "a page of context", "abort one of 256 x 8,192 tokens"} <= goals


def test_a_case_that_does_not_exist_is_named_with_those_that_do() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "scheduler.py"), "--case", "decoding"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no case `decoding`; there are decode-64-8192, ")
