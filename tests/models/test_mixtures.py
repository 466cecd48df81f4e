"""Models as one program in C++: every kernel is there, and the tokens of mixtures of experts are those of torch's kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.models.running import run
from tests.models.tiny import BY_NAME, TinyModels, prompt

from tskernels import simd
from tsrun.artifact import PROGRAM, open_artifact
from tsrun.executor import Executor
from tsrun.limits import Limits
from tsrun.program import read_program

MODELS = ["qwen3_moe", "qwen3_next", "deepseek_v3", "deepseek_v3_direct", "gpt_oss"]
ALL = [*MODELS, "deepseek_v2", "mixtral", "glm4_moe", "olmo2", "phi3", "gemma2", "qwen2", "llama_biased"]
TORCH = "cpu+"
"""A processor without instruction sets: torch's kernels alone."""

needs_simd = pytest.mark.skipif(not simd.is_available(), reason="needs a processor that the C++ kernels are made for")


def needs_torch(path: Path) -> bool:
    artifact = open_artifact(path)
    program = read_program(artifact.file(PROGRAM))
    windows = tuple((window, 16) for window in sorted({cache.window for cache in program.caches} - {0}))
    limits = Limits(page_size=4, num_pages=16, max_sequences=2, max_step_tokens=16, max_context=64, windows=windows, num_states=4)
    return Executor(artifact, program, 0, limits, threads=1).needs_torch


@needs_simd
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("model", ALL)
def test_a_model_runs_in_cpp_alone(model: str, dtype: str, tiny: TinyModels) -> None:
    assert not needs_torch(tiny.artifact(BY_NAME[model], dtype=dtype))


@needs_simd
@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_those_of_the_torch_program(model: str, tiny: TinyModels) -> None:
    case = BY_NAME[model]
    other = tiny.artifact(case, target=TORCH)
    assert needs_torch(other)
    prompts = [prompt(length, seed=length) for length in (1, 19, 4, 33, 8)]
    found, expected = (run(path, prompts, 20) for path in (tiny.artifact(case), other))
    assert [trace.tokens for trace in found] == [trace.tokens for trace in expected]
    for one, two in zip(found, expected, strict=True):
        for a, b in zip(one.sampled, two.sampled, strict=True):
            assert (a - b).abs().max() < 1e-4  # as test_parity.py holds both to transformers
