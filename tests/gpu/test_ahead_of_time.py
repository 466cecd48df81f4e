"""Machine code in artifacts: what is compiled, when, and what becomes of a compiler that gives up."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.gpu.models import KIMI, KIMI_LATENT, LLAMA, LLAMA_WIDE, GpuModels
from tests.models.running import run
from tests.models.tiny import Case, prompt

from tsc.cli import main
from tsc.diagnostics import MissingCapability
from tsc.machine_code import compile_kernels
from tskernels.gpu import compile as compiling
from tskernels.gpu.compile import CompilationFailed, compile_functions
from tskernels.gpu.functions import Function, MachineCode, function_of
from tskernels.gpu.launch import Argument, Launch, Operand, Out, Resources, Scalar, TritonSource
from tskernels.gpu.sizes import T, cdiv
from tskernels.registry import Call, explain
from tskernels.registry import Operand as OperandType
from tskernels.target import Target, gpu, parse_target
from tskernels.toolchain import missing
from tspasses.launch_table import LaunchTable
from tsrun.compile_cache import CompileCache
from tsrun.errors import MachineError
from tsrun.gpu.kernels_file import read_kernels
from tsrun.gpu.opening import device_for
from tsrun.limits import LimitOptions

if find_spec("triton") is None:  # importing it here would settle that its functions are compiled in this process
    pytest.skip("needs Triton", allow_module_level=True)

SM_90A = gpu("sm_90a")
_FUNCTION = """
import triton, triton.language as tl
@triton.jit
def double(x, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < count) * 2, mask=at < count)
"""
_ABORTING = """
import os, sys
print("LLVM ERROR: Cannot select", file=sys.stderr, flush=True)
os.abort()
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules with functions, where compilers find them; and a cache of their own."""
    (tmp_path / "doubled").mkdir()
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    (tmp_path / "doubled" / "__init__.py").write_text("")
    (tmp_path / "doubled" / "triton_ones.py").write_text(_FUNCTION)
    (tmp_path / "doubled" / "aborting.py").write_text(_ABORTING)
    yield tmp_path / "doubled"
    for name in [name for name in sys.modules if name.partition(".")[0] == "doubled"]:
        del sys.modules[name]


def double(block: int, module: str = "triton_ones", *, typed: bool = True) -> Function:
    arguments: dict[str, Argument] = {"x": Operand(0), "out": Out(), "count": Scalar(T * 64)}
    types = {"x": "bf16", "out": "bf16"} if typed else {"x": "bf16"}
    source = TritonSource(f"doubled.{module}", "double")
    return function_of(Launch(source, (cdiv(T * 64, block), 1, 1), arguments, {"BLOCK": block}, types))


def test_an_artifact_has_the_machine_code_of_what_its_calls_launch(gpu_models: GpuModels) -> None:
    path = gpu_models.artifact(LLAMA, "sm_90a")
    found = read_kernels(path / "kernels.json")
    program = json.loads((path / "program.json").read_text())
    nodes = [node for graph in program["graphs"].values() for node in graph["nodes"] if "plan" in node]
    assert {node["plan"] for node in nodes} == set(range(len(found.plans)))
    assert all((found.plans[n["plan"]].op, found.plans[n["plan"]].kernel) == (n["op"], n["kernel"]) for n in nodes)
    assert "ts::attention" in {node["op"] for node in nodes}
    launched = {launch.function for plan in found.plans for variant in plan.variants for launch in variant.launches}
    assert launched == set(range(len(found.functions)))
    for function in found.functions:
        code = (path / function.file).read_bytes()
        assert code.startswith(b"\x7fELF")
        assert function.resources.sha256 == hashlib.sha256(code).hexdigest()
        assert function.resources.registers > 0
    listed = CliRunner().invoke(main, ["kernels", "list"], catch_exceptions=False).output
    attention = [f.resources for f in found.functions if f.symbol in ("attend", "combine")]
    most = re.search(r"triton, compiled here for sm_90a: (\d+) registers", listed.partition("\nts::attention ")[2])
    assert most
    assert int(most[1]) >= max(r.registers for r in attention), "of this artifact, and of those that other tests compile"
    shown = CliRunner().invoke(main, ["inspect", str(path)], catch_exceptions=False).output
    for function in found.functions:
        assert any(function.symbol in line and function.resources.sha256[:12] in line for line in shown.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90a", "sm_100a"])
def test_a_model_like_kimi_k2_is_compiled_for_a_gpu_and_runs_here(target: str, gpu_models: GpuModels) -> None:
    path = gpu_models.artifact(KIMI, target)
    shown = CliRunner().invoke(main, ["inspect", str(path)], catch_exceptions=False).output
    assert f"functions for {target}" in shown
    assert "attend_latent" in shown
    same_on_cpu(KIMI, path, gpu_models)


@pytest.mark.slow
@pytest.mark.skipif(missing("nvcc") is not None, reason="nvcc, which compiles latent attention in CUDA C++, is not on the PATH")
def test_latent_attention_of_a_model_like_kimi_k2_is_compiled_for_blocks_and_for_pairs(gpu_models: GpuModels) -> None:
    found = read_kernels(gpu_models.artifact(KIMI_LATENT, "sm_103a", "bf16") / "kernels.json")
    [plan] = [plan for plan in found.plans if plan.kernel == "cuda_tcgen05"]
    assert [v.newest for v in plan.variants] == [1, 2]  # 64 heads: two new tokens are 128 rows
    functions = [found.functions[v.launches[0].function] for v in plan.variants]
    assert [(f.symbol, f.cluster) for f in functions] == [("mla_decode", 1), ("mla_decode_pairs", 2)]
    for function in functions:
        assert (function.resources.stack, function.resources.tensor_columns) == (0, 512)
        assert function.resources.shared <= 232_448


@pytest.mark.slow
@pytest.mark.skipif(missing("nvcc") is not None, reason="nvcc, which compiles attention in CUDA C++, is not on the PATH")
def test_attention_is_compiled_by_both_compilers(gpu_models: GpuModels) -> None:
    found = read_kernels(gpu_models.artifact(LLAMA_WIDE, "sm_90a", "bf16") / "kernels.json")
    [plan] = [plan for plan in found.plans if plan.kernel == "cuda"]
    launched = [[found.functions[launch.function].compiler for launch in variant.launches] for variant in plan.variants]
    assert launched == [["triton", "triton"], ["triton", "nvcc", "triton"]]


def test_what_was_compiled_for_a_gpu_runs_on_a_cpu(gpu_models: GpuModels) -> None:
    same_on_cpu(LLAMA, gpu_models.artifact(LLAMA, "sm_90a"), gpu_models)


def same_on_cpu(case: Case, path: Path, models: GpuModels) -> None:
    """The tokens and, as far as sums in another order allow, the logits of an artifact that was compiled for a CPU."""
    prompts = [prompt(17), prompt(5, 1)]
    wanted = run(models.artifact(case, "cpu"), prompts, 8)
    found = run(path, prompts, 8, LimitOptions(num_pages=256, target="cpu"))
    for one, other in zip(wanted, found, strict=True):
        assert one.tokens == other.tokens
        for position, logits in one.logits.items():
            assert (logits - other.logits[position]).abs().max() <= 1e-4 * logits.abs().max()


def test_without_its_gpu_an_artifact_says_how_to_run_it(gpu_models: GpuModels) -> None:
    with pytest.raises(MachineError, match=r"sm_90a: the artifact is for such a GPU, and .*; run it on this CPU with --target cpu"):
        run(gpu_models.artifact(LLAMA, "sm_90a"), [prompt(3)], 1)
    assert device_for("sm_90a", "cpu", 0) is None
    assert device_for("cpu", None, 0) is None


def test_functions_are_compiled_once_and_to_the_same_bytes(functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    first = compile_functions([double(256), double(512), double(256)], SM_90A, lambda *step: steps.append(step))
    assert first[0] == first[2] != first[1]
    assert steps[0] == (0, 2)
    assert steps[-1] == (2, 2)
    steps.clear()
    assert compile_functions([double(512)], SM_90A, lambda *step: steps.append(step)) == first[1:2]
    assert steps == [(0, 0)]
    cache = CompileCache()
    assert len(cache.kernel_files()) == 4
    monkeypatch.setenv("TSC_CACHE", str(functions / "other"))
    assert compile_functions([double(256)], SM_90A) == first[:1], "the same bytes"
    assert cache.prune(older_than_days=1, everything=False) == []
    assert len(cache.prune(older_than_days=None, everything=True)) == 4
    assert cache.kernel_files() == []


def test_what_specializes_a_function_is_its_key(functions: Path) -> None:
    assert double(256).key(SM_90A) != double(512).key(SM_90A)
    assert double(256).key(SM_90A) != double(256).key(gpu("sm_100a"))
    before = double(256).key(SM_90A)
    (functions / "other.py").write_text("changed = True")
    from tskernels.gpu.functions import _folder_digest

    _folder_digest.cache_clear()
    assert double(256).key(SM_90A) != before


def test_a_compiler_that_ends_itself_is_one_line(functions: Path) -> None:
    table = LaunchTable([double(256, "aborting")], [])
    with pytest.raises(MissingCapability, match=r"^--target sm_90a: double for sm_90a: triton ended itself \(LLVM ERROR: Cannot select\)$"):
        compile_kernels(table, SM_90A, lambda *_: None)


def test_arguments_that_a_function_does_not_take_are_told(functions: Path) -> None:
    wrong = Function(TritonSource("doubled.triton_ones", "double"), (("x", "*bf16"),), (), (("BLOCK", 64),), 4, 2, 0, 1, False)
    with pytest.raises(CompilationFailed, match="double takes x, out, count, BLOCK, and gets x, BLOCK"):
        compile_functions([wrong], SM_90A)
    with pytest.raises(ValueError, match="says no type of what lies at `out`"):
        double(64, typed=False)


def test_a_function_that_does_not_wait_is_no_dependent(functions: Path) -> None:
    with pytest.raises(CompilationFailed, match="double is to begin before the launches before it have ended, and does not wait for them"):
        compile_functions([replace(double(64), dependent=True)], SM_90A)


@pytest.mark.parametrize(
    ("resources", "what"),
    [(Resources(32, 300_000, 0, 0, ""), "300,000 bytes of shared memory"), (Resources(32, 0, 640, 0, ""), "640 columns of tensor memory")],
)
def test_more_than_a_device_has_is_refused(resources: Resources, what: str, functions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_cached", lambda folder, key: MachineCode(b"", "double", 128, 2, resources))
    with pytest.raises(CompilationFailed, match=f"double takes {what}"):
        compile_functions([double(64)], gpu("sm_100a"))


def test_a_kernel_whose_compiler_is_missing_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call("ts::rms_norm", (OperandType("bf16", (None, 64)), OperandType("bf16", (64,))), {"eps": 1e-6, "offset": 0.0})
    assert explain(call, SM_90A)[0].kernel.plan is not None
    monkeypatch.setattr("tskernels.registry.missing", lambda compiler: "is compiled by Triton, which is not installed here")
    found = explain(call, SM_90A)
    assert found[0].kernel.name == "torch"
    reasons = {c.kernel.name: c.reason for c in found}
    assert reasons["triton"] == "is compiled by Triton, which is not installed here"
    assert missing("triton") is None


@pytest.mark.parametrize("target", ["sm_90a", "sm_103a", "gfx950"])
def test_a_gpu_runs_what_is_made_of_torchs_ops(target: str) -> None:
    place: Target = parse_target(target)
    assert str(place) == place.architecture == target
    call = Call("ts::linear", (OperandType("f32", (None, 64)), OperandType("f32", (32, 64))))
    assert explain(call, place)[0].kernel.name == "torch"


def test_an_int8_cache_has_no_kernel_there(gpu_models: GpuModels, tmp_path: Path) -> None:
    words = [
        "compile",
        "--weights",
        str(gpu_models.checkpoint(LLAMA)),
        "--target",
        "sm_90a",
        "--cache",
        "int8",
        "-o",
        str(tmp_path / "x.tsa"),
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 3
    assert "no kernel can run ts::cache_append" in done.output
    assert not (tmp_path / "x.tsa").exists()
