"""The log probabilities of a prompt: those of the model, however it is cut into steps, and whatever the prefix cache has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime import numpy_sampler
from tests.runtime.test_engine import PROMPTS
from tests.runtime.toy import Toy

from tsrun import new_scheduler
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import Event, GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling

LONG = [(7 * i) % 250 for i in range(45)]


def run(engine: Engine, requests: list[GenerationRequest]) -> list[list[Event]]:
    events: dict[int, list[Event]] = {engine.submit(request): [] for request in requests}
    for event in engine.events():
        events[event.request].append(event)
    return list(events.values())


def assert_scored(toy: Toy, request: GenerationRequest, events: list[Event]) -> None:
    assert request.prompt_logprobs is not None
    assert all(event.prompt_logprobs == () for event in events[1:])
    found = events[0].prompt_logprobs
    assert [each.token for each in found] == list(request.prompt[1:])
    logits_TV = toy.logits(list(request.prompt)).numpy()
    for each, logits_V in zip(found, logits_TV, strict=False):
        expected_V = numpy_sampler.logprobs(logits_V)
        assert each.logprob == pytest.approx(expected_V[each.token], abs=1e-3)
        assert len(each.top) == request.prompt_logprobs
        assert [value for _, value in each.top] == pytest.approx(sorted(expected_V, reverse=True)[: len(each.top)], abs=1e-3)


@pytest.mark.parametrize("scored_rows", [1, 5, 64])
@pytest.mark.parametrize(
    "options",
    [
        LimitOptions(),
        LimitOptions(depth=1),
        LimitOptions(max_step_tokens=7),
        LimitOptions(max_sequences=1),
        LimitOptions(page_size=4, num_pages=16, max_step_tokens=16),
    ],
    ids=["batched", "one-step-at-a-time", "chunked", "one-sequence", "preempted"],
)
def test_they_are_those_of_the_model(
    toy: Toy, toy_artifact: Path, options: LimitOptions, scored_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_scheduler, "SCORED_ROWS", scored_rows)
    samplings = [Sampling(), Sampling(1.0, seed=1), Sampling(logit_bias={3: 5.0}), Sampling(), Sampling()]
    prompts = [*PROMPTS[:4], LONG]
    requests = [
        GenerationRequest(prompt, 14, sampling, ignore_eos=True, prompt_logprobs=count)
        for prompt, sampling, count in zip(prompts, samplings, (0, 1, 3, None, 20), strict=True)
    ]
    with Engine(toy_artifact, options) as engine:
        answers = run(engine, requests)
        if scored_rows > 1:  # else the long prompt comes when the others are gone
            assert (engine.num_preemptions > 0) == (options.num_pages is not None)
    with Engine(toy_artifact, options) as engine:
        plain = run(engine, [GenerationRequest(r.prompt, 14, r.sampling, ignore_eos=True) for r in requests])
    for request, events, expected in zip(requests, answers, plain, strict=True):
        tokens, others = ([token for event in each for token in event.token_ids] for each in (events, expected))
        assert tokens == others
        if request.prompt_logprobs is None:
            assert all(event.prompt_logprobs == () for event in events)
        else:
            assert_scored(toy, request, events)


def test_a_prompt_that_is_cached_is_computed_anew(toy: Toy, toy_artifact: Path) -> None:
    with Engine(toy_artifact, LimitOptions(page_size=4)) as engine:
        run(engine, [GenerationRequest(LONG, 2)])
        request = GenerationRequest(LONG, 2, prompt_logprobs=2)
        for _ in range(2):
            (events,) = run(engine, [request])
            assert events[0].cached_tokens == 0
            assert_scored(toy, request, events)
        ((event, *_),) = run(engine, [GenerationRequest(LONG, 2)])
        assert event.cached_tokens == 44


def test_ranks_give_them_too(toy: Toy, toy_artifact_of_two_ranks: Path) -> None:
    request = GenerationRequest(LONG, 2, prompt_logprobs=1, logprobs=1)
    with Engine(toy_artifact_of_two_ranks) as engine:
        (events,) = run(engine, [request])
    assert_scored(toy, request, events)


def test_a_prompt_of_one_token_has_none(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        assert [event.prompt_logprobs for event in run(engine, [GenerationRequest([9], 2, prompt_logprobs=3)])[0]] == [(), ()]


def test_an_abort_leaves_nothing(toy_artifact: Path) -> None:
    with Engine(toy_artifact, LimitOptions(max_step_tokens=7)) as engine:
        number = engine.submit(GenerationRequest(LONG, 2, prompt_logprobs=3))
        engine.step()
        engine.abort(number)
        other = engine.submit(GenerationRequest(LONG, 2))
        assert {event.request: event.finish_reason for event in engine.events()} == {number: "abort", other: "length"}


def test_a_count_out_of_range_is_refused() -> None:
    with pytest.raises(RequestError, match="prompt-logprobs: got 21; give a count from 0 to 20"):
        GenerationRequest([1], prompt_logprobs=21)
