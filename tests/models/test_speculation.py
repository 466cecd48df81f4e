"""With drafts an answer has the same bits as without: its tokens, and their log probabilities. On this machine's kernels."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tests.models.tiny import BY_NAME, TinyModels
from tests.runtime.test_speculation import Answers, Oracle, every_draft, tokens_of

from tsrun import speculation
from tsrun.engine import Engine
from tsrun.generation import Event, GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling
from tsrun.step_cost import StepCost

MODELS = ["llama", "gemma3", "qwen3_moe", "deepseek_v3"]


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> list[list[Event]]:
    events: dict[int, list[Event]] = {engine.submit(request): [] for request in requests}
    for event in engine.events():
        events[event.request].append(event)
    return list(events.values())


def what_came(answers: Sequence[Sequence[Event]]) -> list[object]:
    return [(tokens_of(events), [one for event in events for one in event.logprobs]) for events in answers]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_drafts_change_no_bit(tiny: TinyModels, model: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some = random.Random(3)
    samplings = [
        Sampling(),
        Sampling(1.0, seed=5),
        Sampling(0.7, top_p=0.9, seed=6),
        Sampling(frequency_penalty=0.7, repetition_penalty=1.2),
    ]
    requests = [
        GenerationRequest(some.choices(range(50), k=5 + 3 * i), 40, samplings[i % 4], ignore_eos=True, logprobs=2 if i % 8 > 3 else None)
        for i in range(16)
    ]
    artifact = tiny.artifact(BY_NAME[model], dtype=dtype)
    with Engine(artifact, LimitOptions(num_pages=512, speculate="off"), threads=2) as engine:
        plain = run(engine, requests)
    answers: Answers = {tuple(r.prompt): tokens_of(events) for r, events in zip(requests, plain, strict=True)}
    with Engine(artifact, LimitOptions(num_pages=512), threads=2) as engine:
        assert what_came(run(engine, requests)) == what_came(plain)

    class Oracles:
        def drafter(self, prompt: Sequence[int], salt: str | None, ends: object) -> Oracle:
            return Oracle(prompt, answers, 0.1)

    monkeypatch.setattr(speculation, "LookupDrafters", Oracles)
    monkeypatch.setattr(StepCost, "depths", every_draft)
    for options in (LimitOptions(num_pages=512, max_sequences=4), LimitOptions(num_pages=512, max_step_tokens=24, depth=1, screen=False)):
        with Engine(artifact, options, threads=2) as engine:
            found = run(engine, requests)
            assert engine.speculated.accepted_tokens > 200
        assert what_came(found) == what_came(plain)
