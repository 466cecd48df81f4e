"""For all tests: the repository's root on the path, so that they may import `tests.*`, threads that soon sleep, and options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tsrun.threads import spin_briefly

spin_briefly()  # before torch is loaded, so that tests are not slow when they share the machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite expected texts (tests/passes/cases); review the diff")
