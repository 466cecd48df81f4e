"""Models on meshes of simulated devices: the logits of the torch target, and the collectives of the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.jax.programs import Ran, compiled_collectives, planned_collectives, run_jax
from tests.models.running import Trace, run
from tests.models.tiny import BY_NAME, TinyModels, prompt

from tsc.driver import compile_artifact
from tsc.request import Request
from tsrun.limits import LimitOptions

FILES = Path(__file__).parents[2] / "models"
TOLERANCE = 1e-4
STEPS = {"tokens": 8, "sequences": 2, "pages": 32}
PROMPTS = [prompt(11, 1), prompt(5, 2)]
"""Both prompts end with the second step of 8 tokens; then come steps of a token each."""
TOKENS = 5
_DEEPSEEK = BY_NAME["deepseek_v3"]
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8}
MODELS = {name: BY_NAME[name] for name in ("llama", "gemma3", "qwen3_moe")} | {
    "deepseek_v3": replace(_DEEPSEEK, name="deepseek_v3_wide", settings=_DEEPSEEK.settings | _HEADS)  # for eight ranks
}
MESHES = [(model, mesh) for model in MODELS for mesh in ({"tp": 1}, {"tp": 2}, {"tp": 4}, {"tp": 8}, {"dp": 2, "tp": 4})]
IN_CI = (("llama", {"tp": 2}), ("qwen3_moe", {"tp": 4}), ("deepseek_v3", {"dp": 2, "tp": 4}))


@dataclass(frozen=True)
class Case:
    path: Path
    expected: list[Trace]
    ran: Ran


def _parameters() -> Iterator[object]:
    for model, mesh in MESHES:
        name = "-".join([model, *(f"{axis}{size}" for axis, size in mesh.items())])
        yield pytest.param((model, mesh), id=name, marks=(pytest.mark.slow, *(() if (model, mesh) in IN_CI else (pytest.mark.matrix,))))


def sharing_out(source: Path, target: Path) -> Path:
    """The model file with an axis `dp`, over which sequences are shared out, if it has none."""
    text = source.read_text()
    if "\n  dp " not in text:
        text = re.sub(r"^mesh \{.*$", "mesh {\n  dp", text, flags=re.MULTILINE)
        text = text.replace("[T, D", "[T@dp, D").replace(": paged [", ": paged@dp [")
    target.write_text(text)
    return target


@pytest.fixture(scope="module", params=_parameters())
def case(request: pytest.FixtureRequest, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model, mesh = request.param
    path = tmp_path_factory.mktemp("jax") / "model.tsa"
    file = sharing_out(FILES / f"{model}.ts", path.with_name(f"{model}.ts")) if "dp" in mesh else None
    asked = Request(file, tiny.checkpoint(MODELS[model]), None, mesh, "f32", "jax+cpu", quantize="none", steps=STEPS)
    compile_artifact(asked, path, lambda stage, done, total: None)
    options = LimitOptions(num_pages=32, max_step_tokens=8, max_sequences=2, speculate="off")
    return Case(path, run(tiny.artifact(MODELS[model]), PROMPTS, TOKENS, options), run_jax(path, PROMPTS, TOKENS, options))


def test_logits_are_those_of_the_torch_target(case: Case) -> None:
    """After prompts in chunks and at each of the tokens that follow, in f32."""
    for expected, found in zip(case.expected, case.ran.traces, strict=True):
        assert found.tokens == expected.tokens
        both = expected.logits.keys() & found.logits.keys()  # chunks are laid out otherwise where sequences are shared out
        assert len(found.sampled) == TOKENS
        assert both >= set(range(len(found.prompt) - 1, len(found.prompt) - 1 + TOKENS))
        assert max(float((found.logits[p] - expected.logits[p]).abs().max()) for p in both) < TOLERANCE


def test_compiled_programs_have_exactly_the_collectives_of_the_plan(case: Case) -> None:
    """Kinds, ranks, bytes and counts, as XLA left them."""
    plans = json.loads((case.path / "plan.json").read_text())["plans"]
    assert len(case.ran.texts) >= 2
    for bucket, text in case.ran.texts.items():
        assert compiled_collectives(text) == planned_collectives(plans[bucket.plan], bucket)
