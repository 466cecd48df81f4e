"""Selection, its reasons and its order; registration errors; plug-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tskernels import registry
from tskernels.cost import bandwidth_bound, matmul_bound
from tskernels.registry import Call, DuplicateKernel, KernelMissing, Operand, explain, isolated, kernel, lookup, op, ops, select
from tskernels.simd import TABLE
from tskernels.target import Target, cpu

MACHINE = cpu("avx2", "fma")


@pytest.fixture(autouse=True)
def _without_simd() -> Iterator[None]:
    """Whether there are C++ kernels is up to the machine; those of other targets have tests of their own."""
    with isolated():
        for key in (*TABLE, *(key for key, found in registry._kernels.items() if found.target.family not in ("cpu", "any"))):
            registry._kernels.pop(key, None)
        yield


X = Operand("bf16", (None, 64))
SILU = Call("ts::silu", (X,))


def quick(call: Call, target: Target) -> float:
    return bandwidth_bound(call, target) / 2


def slow(call: Call, target: Target) -> float:
    return bandwidth_bound(call, target) * 2


def register_silu(name: str, **options: object) -> None:
    def silu(x: object, *, out: object) -> None: ...

    kernel("ts::silu", name=name, **options)(silu)  # type: ignore[arg-type]


def reasons(call: Call, target: Target) -> dict[str, str | None]:
    return {candidate.kernel.name: candidate.reason for candidate in explain(call, target)}


def execute(path: Path, text: str) -> None:
    path.write_text(text)
    exec(compile(text, path, "exec"), ModuleType("plug").__dict__)


def test_every_op_of_the_document_is_registered() -> None:
    table = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text().split("## Ops")[1].split("## Kernels")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {f"ts::{name.strip().strip('`')}" for row in rows for name in row.split(",")}
    assert len(named) == 54
    assert set(ops()) == named


def test_kinds() -> None:
    assert lookup("ts::narrow", "reference").kind == "view"
    assert lookup("ts::cache_append", "torch").kind == "inplace"
    assert lookup("ts::all_reduce", "reference").kind == "collective"
    assert lookup("ts::rms_norm", "torch").kind == "compute"


def test_cheaper_kernel_wins() -> None:
    with isolated():
        register_silu("a_slow_one", cost=slow)
        register_silu("zippy", cost=quick)
        assert [candidate.kernel.name for candidate in explain(SILU, MACHINE)] == ["zippy", "torch", "a_slow_one", "reference"]
        assert select(SILU, MACHINE).name == "zippy"


def test_equal_costs_go_by_name() -> None:
    with isolated():
        register_silu("same")
        assert select(SILU, MACHINE).name == "same"
        register_silu("alike")
        assert select(SILU, MACHINE).name == "alike"


def test_reference_loses_to_a_kernel_predicted_slower() -> None:
    with isolated():

        @op("ts::made_up", cost=quick)
        def made_up(x: object) -> object:
            return x

        @kernel("ts::made_up", name="tardy", cost=slow)
        def tardy(x: object, *, out: object) -> None: ...

        winner, loser = explain(Call("ts::made_up", (X,)), MACHINE)
        assert (winner.kernel.name, loser.kernel.name) == ("tardy", "reference")
        assert winner.cost_seconds > loser.cost_seconds


def test_reference_runs_where_nothing_else_may() -> None:
    mixed = Call("ts::add", (Operand("bf16", (4,)), Operand("f32", (4,))))
    assert select(mixed, MACHINE).name == "reference"
    assert reasons(mixed, MACHINE)["torch"] == "needs floating operands of one element type"


def test_a_kernel_says_why_it_lost() -> None:
    def wide(call: Call) -> bool:
        """a last dimension that 128 divides."""
        return (call.operands[0].shape[-1] or 0) % 128 == 0

    with isolated():
        register_silu("avx512", target=cpu("avx512f", "avx2"), cost=quick)
        register_silu("gpu", target=Target("cuda", frozenset({"sm_90a"})), cost=quick)
        register_silu("single", dtypes=("f32",), cost=quick)
        register_silu("wide", when=wide, cost=quick)
        assert reasons(SILU, MACHINE) == {
            "torch": None,
            "reference": None,
            "avx512": "needs avx512f, which this cpu lacks",
            "gpu": "runs on cuda, not on cpu",
            "single": "takes f32, not bf16",
            "wide": "needs a last dimension that 128 divides",
        }
        assert select(SILU, cpu("avx512f", "avx2")).name == "avx512"
        assert select(Call("ts::silu", (Operand("f32", (None, 64)),)), MACHINE).name == "single"
        assert select(Call("ts::silu", (Operand("bf16", (None, 128)),)), MACHINE).name == "wide"


def test_missing_kernel_lists_all_candidates() -> None:
    with pytest.raises(KernelMissing, match="no kernel can run") as caught:
        select(Call("ts::silu", (Operand("bf16", (None, 64), "int8"),)), MACHINE)
    listed = str(caught.value).splitlines()
    assert listed[0].startswith("no kernel can run ts::silu(bf16[?, 64] in int8) on cpu")
    assert sorted(listed[1:]) == [f"  {name}: takes operand 0 in rows, not in int8" for name in ("reference", "torch")]


def test_unknown_op_offers_a_near_name() -> None:
    with pytest.raises(KernelMissing, match="did you mean `ts::rms_norm`"):
        select(Call("ts::rmsnorm", (X, X)), MACHINE)


def test_lookup_of_an_unknown_kernel_lists_names() -> None:
    with pytest.raises(KernelMissing, match="ts::silu has no kernel `fast`; it has reference, torch"):
        lookup("ts::silu", "fast")


def test_second_registration_names_both_files(tmp_path: Path) -> None:
    text = """
from tskernels.registry import kernel
@kernel("ts::silu", name="mine")
def silu(x, *, out): ...
"""
    with isolated():
        execute(tmp_path / "first.py", text)
        with pytest.raises(DuplicateKernel) as caught:
            execute(tmp_path / "second.py", text)
        assert str(tmp_path / "first.py") in str(caught.value)
        assert str(tmp_path / "second.py") in str(caught.value)


def test_second_op_names_both_files() -> None:
    with isolated(), pytest.raises(DuplicateKernel, match=r"(?s)activation\.py.*test_registry\.py"):
        op("ts::silu")(lambda x: x)


def test_kernel_must_take_the_parameters_of_its_op() -> None:
    def rms_norm(x: object, weight: object, eps: float, offset: float, *, out: object) -> None: ...

    with isolated(), pytest.raises(TypeError, match=r"takes \(x, weight, eps.*must take \(x, w, eps, offset, out\)"):
        kernel("ts::rms_norm", name="renamed")(rms_norm)


def test_isolated_forgets_what_was_registered() -> None:
    with isolated():
        register_silu("passing")
    with pytest.raises(KernelMissing):
        lookup("ts::silu", "passing")


def test_dynamic_dimensions_count_as_sixteen() -> None:
    w = Operand("f32", (32, 64))
    known = Call("ts::linear", (Operand("f32", (16, 64)), w))
    dynamic = Call("ts::linear", (Operand("f32", (None, 64)), w))
    larger = Call("ts::linear", (Operand("f32", (1600, 64)), w))
    assert matmul_bound(dynamic, MACHINE) == matmul_bound(known, MACHINE) < matmul_bound(larger, MACHINE)


def run_python(code: str, *roots: Path) -> str:
    paths = [str(Path(registry.__file__).parents[1]), *map(str, roots)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout


def test_registry_imports_without_torch() -> None:
    assert run_python("import sys, tskernels.registry; print('torch' in sys.modules)").strip() == "False"


def test_plug_in_is_loaded_by_the_first_select(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text(
        "from tskernels.registry import kernel\n"
        "@kernel('ts::silu', name='plugged', cost=lambda call, target: 0.0)\n"
        "def silu(x, *, out): ...\n"
    )
    metadata = tmp_path / "plug-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tskernels]\nplug = plug\n")
    code = (
        "from tskernels.registry import Call, Operand, select; from tskernels.target import CPU\n"
        "print(select(Call('ts::silu', (Operand('f32', (4,)),)), CPU).name)"
    )
    assert run_python(code, tmp_path).strip() == "plugged"
