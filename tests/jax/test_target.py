"""The target itself: what is exported and read back, what a machine without JAX is told, and what steps of fixed sizes refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jax.export import deserialize
from tests.models.running import run
from tests.models.tiny import BY_NAME, TinyModels, prompt

from tsc.cli import main
from tsc.diagnostics import CompileError
from tsc.driver import compile_artifact
from tsc.request import Request
from tskernels.cache_pages import table_columns
from tspasses.step_buckets import StepBucket, StepLimits, step_buckets
from tsrun.artifact import open_artifact
from tsrun.engine import Engine
from tsrun.errors import MachineError, RequestError
from tsrun.jax_steps import fitting, read_steps
from tsrun.limits import LimitOptions

HIDDEN = """
import importlib.machinery as machinery, sys
found = machinery.PathFinder.find_spec
def find_spec(name, *rest):
    return None if name.partition(".")[0] in ("jax", "jaxlib", "flatbuffers") else found(name, *rest)
machinery.PathFinder.find_spec = find_spec
from {module} import main
sys.argv[1:] = {arguments!r}
sys.exit(main())
"""


def without_jax(module: str, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command where JAX is not installed."""
    code = HIDDEN.format(module=module, arguments=list(arguments))
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return made.returncode, made.stderr


@pytest.fixture(scope="module")
def for_tpu(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tpu") / "llama.tsa"
    steps = {"tokens": 1, "sequences": 1, "pages": 8}
    compile_artifact(
        Request(None, tiny.checkpoint(BY_NAME["llama"]), None, {"tp": 2}, "bf16", "jax+tpu", steps=steps), path, lambda *_: None
    )
    return path


def test_a_program_for_tpus_is_exported_without_one_and_lists_its_inputs(for_tpu: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(for_tpu)])
    assert result.exit_code == 0, result.output
    assert "jax/tpu-decode-1-1.bin: 2 devices, 1 tokens, 1 rows" in result.output
    assert (
        "inputs: ids i32[1], last i32[1], lengths i32[1], positions i32[1], slots i32[1], spans i32[1,2], tables i32[1,8]" in result.output
    )
    assert "  lm_head.weight bf16[2,80,48]" in result.output.splitlines()
    assert "  cache 0 bf16[2,9,16,2,1,16]" in result.output.splitlines()


def test_its_attention_is_a_kernel_for_tpus(for_tpu: Path) -> None:
    data = (for_tpu / "jax" / "tpu-decode-1-1.bin").read_bytes()
    assert b"/tskernels/" not in data  # no folder of the machine that compiled it
    exported = deserialize(bytearray(data))
    assert exported.platforms == ("tpu",)
    assert exported.mlir_module().count("tpu_custom_call") == 1  # of a layer, which is called three times
    assert exported.mlir_module().count("call @Layer") == 3


def test_it_does_not_run_on_a_cpu(for_tpu: Path) -> None:
    with pytest.raises(MachineError, match="was exported for tpu, and this machine has cpu; compile it with --target jax"):
        Engine(for_tpu)


def test_without_jax_the_target_says_what_to_install(for_tpu: Path, tiny: TinyModels, tmp_path: Path) -> None:
    checkpoint, path = str(tiny.checkpoint(BY_NAME["llama"])), tmp_path / "made.tsa"
    code, error = without_jax("tsc.cli", "compile", checkpoint, "--target", "jax", "-o", str(path))
    assert (code, error) == (3, "error: --target jax: needs jax and flatbuffers; install them with `pip install 'tsc-llm[jax]'`\n")
    code, error = without_jax("tsc.cli", "compile", checkpoint, "-o", str(path))
    assert code == 0, error
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsrun.jax_program.find_spec", lambda name: None)
        with pytest.raises(MachineError, match=r"is for jax\+tpu, and jax is not installed; `pip install 'tsc-llm\[jax\]'`"):
            Engine(for_tpu)
    assert [len(trace.tokens) for trace in run(path, [prompt(3)], 2)] == [2]  # what was compiled without JAX runs


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"target": "cpu", "steps": {"tokens": 4}}, "--steps: programs for cpu take steps of any size"),
        ({"steps": {"token": 4}}, "--steps: unknown size `token`; known: tokens, sequences, pages"),
        ({"steps": {"pages": 0}}, "--steps: pages is 0, and has to be positive"),
    ],
)
def test_sizes_that_can_not_be_are_refused(tiny: TinyModels, tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    request = replace(Request(None, tiny.checkpoint(BY_NAME["llama"]), None, None, "f32", "jax"), **asked)
    with pytest.raises(CompileError, match=message):
        compile_artifact(request, tmp_path / "x.tsa", lambda *_: None)


def test_a_cache_layout_without_a_kernel_is_refused(tiny: TinyModels, tmp_path: Path) -> None:
    arguments = [str(tiny.checkpoint(BY_NAME["llama"])), "--target", "jax", "--cache", "int8", "-o", str(tmp_path / "x.tsa")]
    result = CliRunner().invoke(main, ["compile", *arguments])
    assert result.exit_code == 3
    assert "error: no kernel can run ts::cache_append(" in result.output
    assert "`tsc kernels why OP --target jax` says of each why" in result.output


def test_limits_are_those_of_the_programs(for_tpu: Path) -> None:
    artifact = open_artifact(for_tpu)
    found = fitting(LimitOptions(), artifact)
    assert (found.max_sequences, found.max_step_tokens, found.num_pages) == (1, 1, 8)
    assert read_steps(for_tpu).columns == table_columns(8)
    for options, message in (
        (LimitOptions(max_sequences=2), "max-sequences: got 2, and the artifact's programs hold 1; compile it with larger --steps"),
        (LimitOptions(num_pages=9), "num-pages: got 9"),
        (LimitOptions(page_size=32), "page-size: got 32"),
        (LimitOptions(target="cpu"), "target: an artifact for JAX runs through JAX"),
        (LimitOptions(speculate="mtp", branches=1), "branches: the programs of an artifact for JAX have no pages for them"),
        (LimitOptions(cache_bytes=1 << 20), "cache-bytes: an artifact for JAX has a cache of fixed size"),
    ):
        with pytest.raises(RequestError, match=message):
            fitting(options, artifact)


def test_every_step_has_a_bucket() -> None:
    """Plans change at 4 tokens, from which on they are padded to multiples of 8."""
    plans = [{"tokens": 1, "token_multiple": 2}, {"tokens": 4, "token_multiple": 8}]
    found = step_buckets(plans, StepLimits(tokens=20, sequences=5, pages=9))
    assert found == sorted(found, key=lambda b: (b.tokens, b.rows))
    assert found[0] == StepBucket(0, 2, 1)
    assert all(b.tokens % plans[b.plan]["token_multiple"] == 0 for b in found)
    for tokens in range(1, 21):
        assert any(b.tokens >= tokens and b.rows >= min(tokens, 5) for b in found)
    assert (found[-1].tokens, found[-1].rows) == (24, 5 + 64 + 64)
