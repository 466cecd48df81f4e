"""Log probabilities against their definition, and that they are those of the model whatever else a request asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.runtime import numpy_sampler
from tests.runtime.test_engine import PROMPTS
from tests.runtime.test_sampler import output, ranked, stored
from tests.runtime.toy import Toy

from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest, TokenLogprobs
from tsrun.limits import LimitOptions
from tsrun.sampler import Draws, Sampling

SAMPLINGS = [Sampling(), Sampling(0.7, top_k=5, seed=2), Sampling(1.5, seed=1, logit_bias={7: 9.0}, frequency_penalty=1.0)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "filtered", "adjusted"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f64"])
@pytest.mark.parametrize("V", [8, 129, 5000])
def test_they_are_those_of_the_definition(V: int, dtype: str, sampling: Sampling) -> None:
    rows = stored(np.random.default_rng(V).normal(size=(1, V)) * 3, dtype)
    expected_V = numpy_sampler.logprobs(output(rows, dtype).numbers()[0])
    chosen = Draws([sampling.sampler(logprobs=20)], np.zeros(1, dtype=np.int32)).choose(output(rows, dtype))
    token, (of_token, top) = int(chosen.tokens[0]), chosen.logprobs[0]
    assert of_token == pytest.approx(expected_V[token], abs=1e-5)
    assert [index for index, _ in top] == sorted(range(V), key=lambda i: (-expected_V[i], i))[:20]
    assert [value for _, value in top] == pytest.approx([expected_V[index] for index, _ in top], abs=1e-5)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=40), st.integers(0, 20))
def test_of_equals_the_first_come_first(numbers: list[int], count: int) -> None:
    logits: NDArray[np.float32] = np.array([numbers], dtype=np.float32)
    chosen = Draws([Sampling().sampler(logprobs=count)], np.zeros(1, dtype=np.int32)).choose(output(logits, "f32"))
    assert [index for index, _ in chosen.logprobs[0][1]] == ranked(logits[0])[:count]


def test_who_does_not_ask_gets_none() -> None:
    rows = np.zeros((3, 10), dtype=np.float32)
    samplers = [Sampling().sampler(), Sampling().sampler(logprobs=0), None]
    chosen = Draws(samplers, np.zeros(3, dtype=np.int32)).choose(output(rows, "f32"))
    assert list(chosen.logprobs) == [1]
    of_token, top = chosen.logprobs[1]
    assert (pytest.approx(of_token), top) == (-np.log(10), [])


Found = dict[int, list[TokenLogprobs]]


def run(path: Path, requests: list[GenerationRequest], options: LimitOptions) -> tuple[Found, int]:
    with Engine(path, options) as engine:
        found: Found = {engine.submit(request): [] for request in requests}
        for event in engine.events():
            if requests[event.request].logprobs is None:
                assert event.logprobs == ()
            else:
                assert [each.token for each in event.logprobs] == list(event.token_ids)
            found[event.request].extend(event.logprobs)
        return found, engine.num_preemptions


@pytest.mark.parametrize(
    "options",
    [LimitOptions(depth=1), LimitOptions(max_step_tokens=7), LimitOptions(page_size=4, num_pages=16, max_step_tokens=16)],
    ids=["one-step-at-a-time", "chunked", "preempted"],
)
def test_an_engine_gives_those_of_the_model_in_any_batch(toy: Toy, toy_artifact: Path, options: LimitOptions) -> None:
    samplings = [*SAMPLINGS, Sampling(), Sampling()]
    counts = [3, 5, 0, None, 20]
    requests = [
        GenerationRequest(prompt, 20, sampling, ignore_eos=True, logprobs=count)
        for prompt, sampling, count in zip(PROMPTS, samplings, counts, strict=True)
    ]
    found, _ = run(toy_artifact, requests, LimitOptions())
    for request, each in zip(requests, found.values(), strict=True):
        ids = list(request.prompt)
        assert len(each) == (0 if request.logprobs is None else 20)
        for one in each:
            expected_V = numpy_sampler.logprobs(toy.logits(ids)[-1].numpy())
            assert one.logprob == pytest.approx(expected_V[one.token], abs=1e-3)
            assert len(one.top) == request.logprobs
            assert [value for _, value in one.top] == pytest.approx(np.sort(expected_V)[::-1][: len(one.top)], abs=1e-3)
            ids.append(one.token)
    again, preemptions = run(toy_artifact, requests, options)
    for one, other in zip((e for each in found.values() for e in each), (e for each in again.values() for e in each), strict=True):
        assert one.token == other.token
        assert other == one
    assert (preemptions > 0) == (options.num_pages is not None)


@pytest.mark.parametrize("count", [-1, 21])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(RequestError, match=f"logprobs: got {count}; give a count from 0 to 20"):
        GenerationRequest([1], logprobs=count)
