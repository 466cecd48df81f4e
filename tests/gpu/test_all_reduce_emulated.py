"""The sum over ranks as Triton compiles it, in the emulator: right, without a race, and not without what orders it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.interpreter import require
from tests.gpu.kernels_of_test import Array, normal
from tests.gpu.ranks_triton import RANKS, ROWS, TIMES, WARPS, WIDTHS, memory_size

from tskernels.emulator import Argument, EmulatorFault, Uninitialized, launch

require()

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WIDE, NARROW = WIDTHS


@cache
def compiled() -> tuple[str, int]:
    """PTX, and bytes of shared memory."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu.ranks_triton"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert made.returncode == 0, made.stderr[-4000:]
    found: dict[str, Any] = json.loads(made.stdout)
    return found["ptx"], found["shared"]


def run(ptx: str, shared: int) -> None:
    """All exchanges; every rank has the sums of the parts in the order of the ranks."""
    x = normal(RANKS, TIMES, ROWS * (WIDE + NARROW), seed=1).astype(np.float32)
    residual, w = normal(ROWS, WIDE, seed=2).astype(np.float32), normal(WIDE, seed=3).astype(np.float32)
    out = np.zeros((RANKS, TIMES, ROWS * (2 * WIDE + NARROW)), np.float32)
    memory, tables = np.zeros((RANKS, memory_size()), np.uint8), np.zeros((RANKS, RANKS), np.int64)
    arguments: list[Argument] = [x, residual, w, Uninitialized(out), memory, Uninitialized(tables), ROWS, RANKS, WIDE, NARROW]
    arguments += [0] * (ptx.count(".param ") - len(arguments))  # scratch memory, of which it takes none
    launch(ptx, "exchanges", (1, RANKS, 1), 32 * WARPS, arguments, shared_bytes=shared, strict=False, max_instructions=200_000)
    for time in range(TIMES):
        total = residual + in_order(x[:, time, : ROWS * WIDE].reshape(RANKS, ROWS, WIDE))
        norm = total / np.sqrt((total * total).mean(1, keepdims=True) + 1e-6) * (w + 0.5)
        second = in_order(x[:, time, ROWS * WIDE :].reshape(RANKS, ROWS, NARROW))
        for rank in range(RANKS):
            joint = out[rank, time, : ROWS * 2 * WIDE].reshape(ROWS, 2 * WIDE)
            np.testing.assert_array_equal(joint[:, :WIDE], total)
            np.testing.assert_allclose(joint[:, WIDE:], norm, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(out[rank, time, ROWS * 2 * WIDE :].reshape(ROWS, NARROW), second)


def in_order(parts: Array) -> Array:
    total: Array = np.zeros_like(parts[0])
    for part in parts:
        total = total + part
    return total


def test_exchanges_are_right_and_have_no_race() -> None:
    run(*compiled())


def _without_barriers_before_flags(ptx: str) -> str:
    """Those that follow the loops which send."""
    before, *exchanges = re.split(r"(?=atom\.global\.gpu\.relaxed\.add)", ptx)
    return before + "".join(_without_last_barrier(e, e.index("release.exch")) for e in exchanges)


def _without_last_barrier(text: str, end: int) -> str:
    start = text.rindex("bar.sync", 0, end)
    return text[:start] + text[text.index("\n", start) :]


FAULTS: dict[str, Callable[[str], str]] = {
    "flags are set without release": lambda ptx: ptx.replace(".sys.release.exch", ".sys.relaxed.exch"),
    "flags are looked at without acquire": lambda ptx: ptx.replace("ld.global.sys.acquire", "ld.global.sys.relaxed"),
    "flags are set before all threads have sent": _without_barriers_before_flags,
    "the slots of one exchange are those of the next": lambda ptx: re.sub(r"(and\.b32 \t?%r\d+, %r\d+, )-2;", r"\g<1>-1;", ptx),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    ptx, shared = compiled()
    changed = FAULTS[name](ptx)
    assert changed != ptx
    with pytest.raises(EmulatorFault) as caught:
        run(changed, shared)
    assert caught.value.kind == "race", caught.value
