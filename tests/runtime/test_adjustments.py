"""Biases and penalties against their definition, and in an engine: what must not change them.

Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.runtime import numpy_sampler
from tests.runtime.test_engine import PROMPTS, run
from tests.runtime.test_sampler import assert_defined, output, stored
from tests.runtime.toy import Toy

from tsrun import _core
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest, StepLogits
from tsrun.limits import LimitOptions
from tsrun.sampler import Draws, Sampling

PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.3, "logit_bias": {5: 1.5, 72: -3.0, 259: 100.0}}


def answer(logits_RV: NDArray[np.float32], sampling: Sampling, prompt: Sequence[int], dtype: str = "f32") -> list[int]:
    """Chosen one after the other, each with a row of its own."""
    sampler, rows_RV = sampling.sampler(prompt), stored(logits_RV, dtype)
    found: list[int] = []
    for row in range(len(rows_RV)):
        position = np.array([len(prompt) + row], dtype=np.int32)
        found.append(int(Draws([sampler], position).choose(output(rows_RV[row : row + 1], dtype)).tokens[0]))
    return found


def defined_answer(logits_RV: NDArray[np.float32], sampling: Sampling, prompt: Sequence[int], dtype: str = "f32") -> list[int]:
    found: list[int] = []
    rows_RV = stored(logits_RV, dtype)
    for row, logits_V in enumerate(output(rows_RV, dtype).numbers()):
        adjusted_V = numpy_sampler.adjusted(logits_V, sampling, prompt, found)
        found.append(numpy_sampler.choose(adjusted_V, sampling, sampling.seed or 0, len(prompt) + row))
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f64"])
@pytest.mark.parametrize("V", [7, 128, 300, 5000])
def test_an_answer_is_that_of_the_definition(V: int, dtype: str, temperature: float) -> None:
    generator = np.random.default_rng(V)
    logits_RV = generator.normal(size=(40, V)).astype(np.float32)
    prompt = [int(token) for token in generator.integers(0, V, 12)]
    bias = {int(token): float(generator.normal()) * 3 for token in generator.integers(0, V, 5)}
    for penalties in ({"repetition_penalty": 1.7}, {"frequency_penalty": 0.9}, {"presence_penalty": -1.1}, {"repetition_penalty": 0.6}):
        sampling = Sampling(temperature, seed=3, logit_bias=bias, **penalties)  # type: ignore[arg-type]
        assert answer(logits_RV, sampling, prompt, dtype) == defined_answer(logits_RV, sampling, prompt, dtype)


@given(
    st.lists(st.lists(st.integers(-6, 6), min_size=9, max_size=9), min_size=1, max_size=12),
    st.lists(st.integers(0, 8), max_size=6),
    st.dictionaries(st.integers(0, 8), st.floats(-100, 100), max_size=4),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.1, 5.0),
)
def test_any_greedy_answer_is_that_of_the_definition(
    rows: list[list[int]], prompt: list[int], bias: dict[int, float], presence: float, frequency: float, repetition: float
) -> None:
    logits_RV = np.array(rows, dtype=np.float32)
    sampling = Sampling(logit_bias=bias, presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition)
    assert answer(logits_RV, sampling, prompt) == defined_answer(logits_RV, sampling, prompt)


def test_filters_see_adjusted_logits() -> None:
    logits_V = np.random.default_rng(4).normal(size=2000).astype(np.float32)
    bias = {7: 6.0, 8: 5.5, 1999: 5.0}
    adjusted_V = numpy_sampler.adjusted(logits_V, Sampling(logit_bias=bias))
    for sampling in (Sampling(1.0, top_k=3, seed=1), Sampling(1.0, top_p=0.6, seed=1), Sampling(1.0, min_p=0.4, seed=1)):
        assert_defined(adjusted_V, sampling, range(40))
        biased = [answer(logits_V[None], replace(sampling, logit_bias=bias, seed=seed), [])[0] for seed in range(40)]
        assert biased == [answer(adjusted_V[None], replace(sampling, seed=seed), [])[0] for seed in range(40)]


def test_the_row_itself_stays() -> None:
    logits = np.zeros((1, 300), dtype=np.float32)
    answer(logits, Sampling(logit_bias={3: 4.0}, frequency_penalty=1.0), [1, 2])
    assert not logits.any()


def test_a_token_that_is_chosen_again_counts_once() -> None:
    """As where a step was lost and is run again."""
    logits_RV = np.random.default_rng(1).normal(size=(12, 30)).astype(np.float32)
    sampling = Sampling(frequency_penalty=1.5)
    expected = answer(logits_RV, sampling, [4])
    sampler, found = sampling.sampler([4]), dict[int, int]()
    for row in (0, 1, 2, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 8, 9, 10, 11):
        position = np.array([1 + row], dtype=np.int32)
        found[row] = int(Draws([sampler], position).choose(output(logits_RV[row : row + 1], "f32")).tokens[0])
    assert list(found.values()) == expected


def test_a_sampler_of_another_vocabulary_is_refused() -> None:
    rows, one = np.zeros((1, 4), dtype=np.float32), np.zeros(1, dtype=np.int32)
    with pytest.raises(ValueError, match="tokens that a row of logits has not"):
        _core.choose(rows.ctypes.data, "f32", 4, [Sampling(logit_bias={4: 1.0}).sampler()], one)
    with pytest.raises(ValueError, match="a token is at least 0"):
        _core.Sampler(logit_bias=[(-1, 1.0)])


def adjusted_requests(temperature: float) -> list[GenerationRequest]:
    samplings = [Sampling(temperature, seed=i, **PENALTIES) for i in range(len(PROMPTS) - 1)]  # type: ignore[arg-type]
    return [GenerationRequest(p, 20, s, ignore_eos=True) for p, s in zip(PROMPTS, [*samplings, Sampling()], strict=True)]


@pytest.fixture(scope="module")
def alone(toy_artifact: Path) -> dict[float, list[list[int]]]:
    return {t: [run(toy_artifact, [request])[0][0] for request in adjusted_requests(t)] for t in (0.0, 1.2)}


def test_greedy_tokens_are_the_largest_of_adjusted_logits(toy: Toy, alone: dict[float, list[list[int]]]) -> None:
    for request, tokens in zip(adjusted_requests(0.0), alone[0.0], strict=True):
        ids = list(request.prompt)
        for token in tokens:
            logits_V = toy.logits(ids)[-1].numpy()
            adjusted_V = numpy_sampler.adjusted(logits_V, request.sampling, request.prompt, ids[len(request.prompt) :])
            assert token == int(np.argmax(adjusted_V))
            ids.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize(
    "options",
    [
        LimitOptions(),
        LimitOptions(max_sequences=2),
        LimitOptions(max_step_tokens=3),
        LimitOptions(depth=1, max_step_tokens=7),
        LimitOptions(page_size=4, num_pages=16, max_step_tokens=16),
        LimitOptions(page_size=4, num_pages=16, max_step_tokens=16, depth=1),
    ],
    ids=["batched", "two-at-a-time", "chunked", "one-step-at-a-time", "preempted", "preempted-one-step-at-a-time"],
)
def test_penalties_do_not_depend_on_the_batch(
    toy_artifact: Path, alone: dict[float, list[list[int]]], temperature: float, options: LimitOptions
) -> None:
    tokens, preemptions = run(toy_artifact, adjusted_requests(temperature), options)
    assert (preemptions > 0) == (options.num_pages is not None)
    assert tokens == alone[temperature]


def test_an_observer_sees_the_logits_of_the_model(toy: Toy, toy_artifact: Path) -> None:
    seen: dict[int, NDArray[np.float32]] = defaultdict()

    def look(step: StepLogits) -> None:
        seen[int(step.positions[0])] = step.logits[0].copy()

    with Engine(toy_artifact, observer=look) as engine:
        engine.submit(GenerationRequest([9], 1, Sampling(logit_bias={9: 100.0})))
        assert [event.token_ids for event in engine.events()] == [(9,)]
    np.testing.assert_allclose(seen[0], toy.logits([9])[0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"presence_penalty": 2.1}, "presence-penalty: got 2.1; give a number from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency-penalty: got nan"),
        ({"repetition_penalty": 0.0}, "repetition-penalty: got 0.0; give a positive number"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty: got inf"),
        ({"logit_bias": {1: 101.0}}, "logit-bias: got 101.0 for token 1; give numbers from -100 to 100"),
        ({"logit_bias": {"1": 1.0}}, "logit-bias: got the token '1'; give ids of tokens"),
        ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit-bias: got 1025 tokens; give at most 1024"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Sampling(**options)


@pytest.mark.parametrize("token", [-1, 260, 10**30])
def test_a_bias_of_a_token_that_there_is_not_is_refused(toy_artifact: Path, token: int) -> None:
    with Engine(toy_artifact) as engine:
        with pytest.raises(RequestError, match=f"logit-bias: token {token} is outside of the vocabulary of 260"):
            engine.submit(GenerationRequest([1], sampling=Sampling(logit_bias={token: 1.0})))
        assert engine.num_open == 0
