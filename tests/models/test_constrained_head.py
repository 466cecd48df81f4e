"""A screened head under a constraint: read in part where the largest logit is allowed, else again and whole. The tokens are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.models.running import compiled
from tests.runtime.test_speculation import every_draft
from tests.runtime.toy import EOS, byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling
from tsrun.simd_program import SimdPrograms
from tsrun.step_cost import StepCost

V = 16_384
HALF = Constraint("lark", f"start: <[300-{V // 2}]>+")
BYTES = Constraint("regex", "[a-z]{40}")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screened")
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=V, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, eos_token_id=EOS)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(tokenizer.get_vocab_size(), V)])
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return compiled(folder / "model", folder / "screened.tsa", dtype="bf16")


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("constraint", [HALF, BYTES], ids=["half-of-the-words", "letters"])
def test_the_head_is_read_again_only_where_it_must_be(
    artifact: Path, constraint: Constraint, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drafts: a row that is read again may give its draft, and those after it were not looked at."""
    again: list[int] = []
    monkeypatch.setattr(StepCost, "depths", every_draft)
    run_head = SimdPrograms.run_head

    def count(self: SimdPrograms, plan: int, T: int, S: int, P: int) -> object:
        again.append(S)
        return run_head(self, plan, T, S, P)

    monkeypatch.setattr(SimdPrograms, "run_head", count)
    found = []
    for screen in (True, False):
        with Engine(artifact, LimitOptions(screen=screen, depth=depth)) as engine:
            assert engine._ranks.can_run_head
            free = Sampling(1.0, seed=2)
            asked = [GenerationRequest([5, i], 30, constraint=constraint, ignore_eos=True) for i in range(3)]
            numbers = [engine.submit(one) for one in [*asked, GenerationRequest([7], 30), GenerationRequest([7], 30, free)]]
            tokens: dict[int, list[int]] = {number: [] for number in numbers}
            for event in engine.events():
                assert event.error is None
                tokens[event.request].extend(event.token_ids)
            found.append(tokens)
        if screen:
            assert len(again) > 0
            assert constraint is BYTES or len(again) < 30
            again.clear()
    assert again == []
    assert found[0] == found[1]
