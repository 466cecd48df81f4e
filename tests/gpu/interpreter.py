"""In a process of tests Triton's functions run in its interpreter, on tensors of the CPU. That is settled when Triton is imported, which
libraries do that know it: so it is imported first of all. Processes started from here are not told: they may compile.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest


def interpret() -> None:
    """Before anything imports Triton, where it is installed."""
    if "triton" in sys.modules or find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton
    finally:
        del os.environ["TRITON_INTERPRET"]
    triton.knobs.runtime.interpret = True


def require() -> None:
    """For a module of tests that needs it."""
    pytest.importorskip("triton", reason="needs Triton: pip install tsc-llm[triton]")
    assert sys.modules["triton"].knobs.runtime.interpret, "Triton was imported to compile: tests/conftest.py has to come first"


FORKS = (
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),  # JAX's, which what is forked does not use
)
"""Of tests whose ranks are forked: they have what is shared at the addresses where it is here."""
