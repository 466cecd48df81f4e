"""What `test_parity.py` rests on, and what it does not look at: more ranks than K/V heads, preemption, older spellings of a config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.models.running import compiled, largest_difference, reference_logits, run
from tests.models.tiny import BY_NAME, CASES, Case, TinyModels, changed, prompt

from tsrun.compile_cache import CompileCache
from tsrun.limits import LimitOptions

TOLERANCE = 1e-4
"""Of logits that spread over several units: float32 with another order of sums stays within half of this."""
LONGEST = 28

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_logits_spread_and_show_every_fact_of_the_configuration(case: Case, tiny: TinyModels) -> None:
    model = tiny.model(case)
    logits = reference_logits(model, prompt(LONGEST))
    assert logits.std(-1).min() > 1
    for change in case.changes:
        other = reference_logits(changed(model, case, change), prompt(LONGEST))
        assert (other - logits).abs().max() > 100 * TOLERANCE, change


@pytest.mark.parametrize(
    ("name", "tp"), [("llama", 4), ("qwen3", 4), ("gemma3", 4), ("llama_one_kv", 2), ("gemma3_one_kv", 2), ("llama_tied", 2)]
)
def test_ranks_make_the_logits_of_the_model(name: str, tp: int, tiny: TinyModels) -> None:
    """With more ranks than K/V heads too: K and V, and their cache, repeat over the axis `q`."""
    case = BY_NAME[name]
    path = tiny.artifact(case, tp=tp)
    axes = dict(json.loads((path / "manifest.json").read_text())["axes"])
    assert axes == {"kv": min(tp, case.config.num_key_value_heads), "q": tp // min(tp, case.config.num_key_value_heads)}
    prompts = [prompt(length, seed=length) for length in (1, 19, 33)]
    traces = run(path, prompts, 16, LimitOptions(num_pages=64, page_size=4, max_step_tokens=24))
    difference = largest_difference(tiny.model(case), traces)
    print(f"largest difference {difference:.1e}")
    assert difference < TOLERANCE


def test_preempted_sequences_keep_their_logits(tiny: TinyModels) -> None:
    case = BY_NAME["gemma3"]
    prompts = [prompt(length, seed=length) for length in (11, 9, 10)]
    traces = run(tiny.artifact(case), prompts, 24, LimitOptions(num_pages=16, page_size=4, max_step_tokens=16))
    assert largest_difference(tiny.model(case), traces) < TOLERANCE


def test_an_older_config_of_gemma_means_the_same(tiny: TinyModels, tmp_path: Path) -> None:
    """Before transformers 5, rope had keys of its own, and the kinds of layers were a period."""
    case = BY_NAME["gemma3_one_kv"]
    checkpoint = shutil.copytree(tiny.checkpoint(case), tmp_path / "old")
    config = json.loads((checkpoint / "config.json").read_text())
    assert config.pop("layer_types") == ["sliding_attention"] * 5 + ["full_attention"]
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["full_attention"]["rope_theta"], "rope_scaling": None}
    config |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"], "sliding_window_pattern": 6}
    (checkpoint / "config.json").write_text(json.dumps(config))
    traces = run(compiled(checkpoint, tmp_path / "old.tsa"), [prompt(LONGEST)], 4)
    assert largest_difference(tiny.model(case), traces) < TOLERANCE


@pytest.mark.parametrize("name", ["llama_linear", "llama_llama3"])
def test_an_older_config_of_llama_means_the_same(name: str, tiny: TinyModels, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(tiny.checkpoint(BY_NAME[name]), tmp_path / "old")
    config = json.loads((checkpoint / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (checkpoint / "config.json").write_text(json.dumps(config))
    traces = run(compiled(checkpoint, tmp_path / "old.tsa"), [prompt(LONGEST)], 4)
    assert largest_difference(tiny.model(BY_NAME[name]), traces) < TOLERANCE


@pytest.mark.slow  # compiles in processes of their own
def test_the_context_that_a_checkpoint_is_served_with_decides_the_angles_of_longrope(tiny: TinyModels, tmp_path: Path) -> None:
    """And compiles nothing anew where no angle depends on it."""
    cache, said = CompileCache(tmp_path), list[str]()

    def obtained(name: str, context: int | None) -> tuple[Path, int]:
        path = cache.obtain(tiny.checkpoint(BY_NAME[name]), mesh=None, dtype="f32", say=said.append, context=context)
        return path, json.loads((path / "manifest.json").read_text())["context"]

    short, context = obtained("phi3_short", 64)
    assert context == 64
    assert largest_difference(tiny.model(BY_NAME["phi3_short"]), run(short, [prompt(LONGEST)], 4)) < TOLERANCE
    assert obtained("phi3_short", None)[1] == 256
    assert len(said) == 2
    assert obtained("llama", 64) == obtained("llama", None)
    assert len(said) == 3
