"""Faults planted into PTX of kernels for Hopper and Blackwell: all are found."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from tests.gpu.kernels_of_test import FOLDER, KERNELS, text
from tests.gpu.mutations import OPERATORS, Mutant, mutants
from tests.gpu.ptx.generate import TARGETS, VERSION, compile_to_ptx

from tskernels.emulator import EmulatorFault

MOST = 6
"""Places of an operator in a kernel, evenly over it."""


def chosen(name: str) -> list[Mutant]:
    by_operator = defaultdict(list)
    for mutant in mutants(text(KERNELS[name].name)):
        by_operator[mutant.operator].append(mutant)
    return [m[i * len(m) // min(len(m), MOST)] for m in by_operator.values() for i in range(min(len(m), MOST))]


def verdict(name: str, mutant: Mutant) -> str:
    """How a fault shows: its kind, a wrong result, or not at all."""
    try:
        error, _ = KERNELS[name].run(mutant.text)
    except EmulatorFault as fault:
        return fault.kind
    return "wrong" if error > KERNELS[name].most else "missed"


def _nvcc() -> str:
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout if shutil.which("nvcc") else ""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_every_planted_fault_is_found(name: str) -> None:
    found = {(m.operator, m.line): verdict(name, m) for m in chosen(name)}
    assert len(found) >= 60
    bad = {place: v for place, v in found.items() if v in ("missed", "unsupported")}
    assert bad == {}


def test_every_operator_changes_some_kernel() -> None:
    used = {m.operator for name in KERNELS for m in mutants(text(KERNELS[name].name))}
    assert {o.name for o in OPERATORS} - used == set()


@pytest.mark.slow
@pytest.mark.skipif(VERSION not in _nvcc(), reason=f"needs nvcc {VERSION}")
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_ptx_here_is_what_nvcc_makes_of_the_sources(name: str, tmp_path: Path) -> None:
    assert compile_to_ptx(name, tmp_path).read_text() == (FOLDER / f"{name}.ptx").read_text()
