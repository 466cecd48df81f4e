"""For all tests: the repository's root on the path, so that they may import `tests.*`, threads that soon sleep, and options."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.gpu.interpreter import interpret

from tskernels.waiting import spin_briefly

interpret()

spin_briefly()  # before torch is loaded, so that tests are not slow when they share the machine
# Processes of pytest-xdist share the cores: two with threads for both of two cores spend most of their time waiting for each other.
if num_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What this user has compiled and measured decides nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite expected texts (tests/passes/cases); review the diff")
