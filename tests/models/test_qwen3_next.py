"""Qwen3-Next, whose gated delta nets keep a state for each sequence: ranks, conversations, generating and serving. What all architectures
are held to, logits and bits among it, is in the other files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.running import compiled, largest_difference, run
from tests.models.tiny import BY_NAME, Case, TinyModels, make, prompt
from tests.runtime.conversations import Turn, all_at_once, differing, one_by_one, script
from tests.runtime.toy import BOS, EOS, byte_tokenizer
from tests.serve.conftest import start

from tsc.front import models_directory, place_model, read_model
from tsc.simulation.simulate import simulate
from tspasses.placed import Options
from tspasses.plan import plan_of
from tsrun.engine import Engine
from tsrun.errors import MachineError
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions

CASE = BY_NAME["qwen3_next"]
SCRIPT = script(12, 6)
PAGES = {
    "plenty": LimitOptions(page_size=4, max_step_tokens=24, snapshot_tokens=8),
    "few states": LimitOptions(page_size=4, max_step_tokens=24, snapshot_tokens=4, max_sequences=3),
    "thrashing": LimitOptions(page_size=1, num_pages=160, max_step_tokens=48, snapshot_tokens=8),
}
"""The longest request has up to 150 tokens."""
MODEL = models_directory() / "qwen3_next.ts"


def config(case: Case) -> dict[str, Any]:
    return {**case.config.to_dict(), "architectures": ["Qwen3NextForCausalLM"]}


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokens are bytes."""
    path = tmp_path_factory.mktemp("speaking") / "checkpoint"
    case = replace(CASE, settings=CASE.settings | {"vocab_size": EOS + 1, "bos_token_id": BOS, "eos_token_id": EOS})
    make(case).save_pretrained(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    return path


@pytest.fixture(scope="module")
def artifact(speaking: Path) -> Path:
    return compiled(speaking, speaking.parent / "speaking.tsa")


@pytest.fixture(scope="module")
def expected(artifact: Path) -> dict[Turn, list[int]]:
    return one_by_one(artifact, SCRIPT)


@pytest.mark.parametrize("chunk", [5, 64])
def test_two_ranks_make_the_logits_of_the_model(chunk: int, tiny: TinyModels) -> None:
    prompts = [prompt(length, seed=length) for length in (1, 19, 33)]
    traces = run(tiny.artifact(CASE, tp=2), prompts, 16, LimitOptions(num_pages=64, page_size=4, max_step_tokens=chunk))
    difference = largest_difference(tiny.model(CASE), traces)
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-4


def test_heads_and_states_are_split_over_ranks() -> None:
    plans = {tp: plan_of(place_model(read_model(MODEL), config(CASE), {"tp": tp}, Options("bf16"))) for tp in (1, 2)}
    H, M, A, B, W = 2, 3, 12, 20, 4
    whole = 3 * 4 * (H * M * A * B + (W - 1) * (2 * H * A + H * M * B))
    assert [plan.state_bytes for plan in plans.values()] == [whole, whole // 2]
    assert [(i.kind, i.times) for i in plans[2].items if i.module == "Layer"] == [("all_reduce", 3)] * 2


def test_simulated_ranks_agree_with_one() -> None:
    assert all(comparison.holds for comparison in simulate(read_model(MODEL), config(CASE), {"tp": 2}).comparisons)


@pytest.mark.parametrize("depth", [1, 2], ids=["depth-1", "depth-2"])
@pytest.mark.parametrize("prefix_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("pages", PAGES)
def test_answers_are_those_of_one_request_at_a_time(
    artifact: Path, expected: dict[Turn, list[int]], pages: str, prefix_cache: bool, depth: int
) -> None:
    options = replace(PAGES[pages], depth=depth, prefix_cache=prefix_cache)
    outcome = all_at_once(artifact, SCRIPT, options, seed=depth, aborts=True)
    assert differing(outcome.answers, expected) == {}
    assert (outcome.preemptions > 0) == (pages == "thrashing")
    assert (outcome.cached_tokens > 0) == prefix_cache


def test_two_ranks_answer_the_same(speaking: Path, expected: dict[Turn, list[int]], tmp_path: Path) -> None:
    few = replace(SCRIPT, openings=SCRIPT.openings[:4], said=SCRIPT.said[:4])
    options = LimitOptions(page_size=4, num_pages=60, max_step_tokens=24, snapshot_tokens=8, max_sequences=8)
    outcome = all_at_once(compiled(speaking, tmp_path / "two.tsa", tp=2), few, options, seed=4)
    assert differing(outcome.answers, {turn: answer for turn, answer in expected.items() if turn[0] < 4}) == {}
    assert outcome.cached_tokens > 0


def test_a_prompt_is_found_as_far_as_the_last_copy_of_its_state(artifact: Path) -> None:
    ids = [BOS, *range(40, 79)]
    found = []
    with Engine(artifact, LimitOptions(page_size=4, snapshot_tokens=16)) as engine:
        for _ in range(2):
            engine.submit(GenerationRequest(ids, 3, ignore_eos=True))
            found.append([(event.cached_tokens, *event.token_ids) for event in engine.events()])
    first, again = found
    assert [cached for cached, *_ in first] == [0] * 3
    assert [cached for cached, *_ in again] == [32] * 3
    assert [token for _, token in first] == [token for _, token in again]


def test_states_come_out_of_the_memory_of_the_cache(artifact: Path) -> None:
    with pytest.raises(MachineError, match=r"no page of 16 tokens beside 65 states.*fewer --max-sequences"):
        Engine(artifact, LimitOptions(cache_bytes=100_000))
    with Engine(artifact, LimitOptions(cache_bytes=4_000_000, max_sequences=4, depth=1)) as engine:
        assert (engine.limits.num_states, engine.limits.snapshot_tokens) == (8, 256)


def test_it_generates_and_serves(speaking: Path, expected: dict[Turn, list[int]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tsrun", "generate", str(speaking), "--dtype", "f32", "-p", "hello there", "--max-tokens", "9"]
    environment = {**os.environ, "TSC_CACHE": str(tmp_path)}
    done = subprocess.run([*command, "--ignore-eos", "--json"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    generated = json.loads(done.stdout)
    assert len(generated["token_ids"]) == 9
    server = start(compiled(speaking, tmp_path / "served.tsa"))
    try:
        with server.client() as client:
            asked = {"model": "served", "prompt": "hello there", "max_tokens": 9, "temperature": 0, "ignore_eos": True}
            answer = client.post("/v1/completions", json=asked).json()
        assert answer["choices"][0]["text"] == generated["text"]
    finally:
        server.stop()


def test_the_reference_is_transformers(speaking: Path, expected: dict[Turn, list[int]]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(speaking, dtype=torch.float32).eval()
    history = list(SCRIPT.openings[3])
    for k, words in enumerate(SCRIPT.said[3]):
        history += words
        answer = expected[3, k]
        with torch.inference_mode():
            logits = model(torch.tensor([history + answer[:-1]]), use_cache=False).logits[0, len(history) - 1 :]
        assert logits.argmax(-1).tolist() == answer
        history += answer
