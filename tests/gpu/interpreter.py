"""Import this before anything that imports Triton: in this process its functions then run in its interpreter, on tensors of the CPU.

Processes started from here are not told: they may compile.
"""

from __future__ import annotations

import os
import sys

import pytest

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        pytest.importorskip("triton", reason="needs Triton: pip install tsc-llm[triton]")
    finally:
        del os.environ["TRITON_INTERPRET"]
    sys.modules["triton"].knobs.runtime.interpret = True

assert sys.modules["triton"].knobs.runtime.interpret, "Triton was imported to compile; run these tests in a process of their own"
