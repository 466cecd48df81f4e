"""The sampler against exact probabilities and against the definition of each filter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tsrun.errors import RequestError
from tsrun.sampler import Sampling, choose, filtered, uniform

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 3.0, -4.0, 1.0, 0.0], dtype=np.float32)


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def chi_square_bound(degrees: int) -> float:
    """The 99.9 % quantile, by Wilson and Hilferty."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=3.0),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=2.0, min_p=0.2),
        Sampling(temperature=2.0, top_k=6, top_p=0.9, min_p=0.1),
    ],
    ids=str,
)
def test_tokens_have_the_probabilities_of_the_filtered_distribution(sampling: Sampling) -> None:
    draws = 20_000
    counts = np.bincount([choose(LOGITS, sampling, 5, position) for position in range(draws)], minlength=len(LOGITS))
    ids, weights = filtered(LOGITS, sampling)
    expected = np.zeros(len(LOGITS))
    expected[ids] = draws * weights / weights.sum()
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    statistic = float(((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum())
    assert statistic < chi_square_bound(int(kept.sum()) - 1)


def test_without_filters_the_distribution_is_the_softmax() -> None:
    ids, weights = filtered(LOGITS, Sampling(temperature=0.7))
    np.testing.assert_array_equal(ids, np.arange(len(LOGITS)))
    np.testing.assert_allclose(weights / weights.sum(), probabilities(LOGITS, 0.7), rtol=1e-12)


# Few different values, so that ties are common.
some_logits = st.lists(st.integers(-6, 6), min_size=1, max_size=40).map(lambda values: np.array(values, dtype=np.float32))


def ranked(logits: NDArray[np.float32]) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


@given(some_logits, st.integers(1, 50))
def test_top_k_keeps_exactly_the_k_largest_and_of_equals_the_first(logits: NDArray[np.float32], k: int) -> None:
    ids, _ = filtered(logits, Sampling(temperature=1.0, top_k=k))
    assert ids.tolist() == sorted(ranked(logits)[:k])


@given(some_logits, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_the_share(logits: NDArray[np.float32], p: float) -> None:
    ids, _ = filtered(logits, Sampling(temperature=1.0, top_p=p))
    order, chances = ranked(logits), probabilities(logits, 1.0)
    assert ids.tolist() == sorted(order[: len(ids)])
    assert chances[order[: len(ids)]].sum() >= p - 1e-9
    assert chances[order[: len(ids) - 1]].sum() < p + 1e-9


@given(some_logits, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_relative_to_the_most_likely(logits: NDArray[np.float32], share: float) -> None:
    ids, _ = filtered(logits, Sampling(temperature=1.0, min_p=share))
    chances = probabilities(logits, 1.0)
    certain = {i for i in range(len(logits)) if chances[i] > share * chances.max() * (1 + 1e-9)}
    possible = {i for i in range(len(logits)) if chances[i] > share * chances.max() * (1 - 1e-9)}
    assert certain <= set(ids.tolist()) <= possible


def test_top_p_works_on_what_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1])).astype(np.float32)
    assert filtered(logits, Sampling(temperature=1.0, top_k=2, top_p=0.5))[0].tolist() == [0]
    assert filtered(logits, Sampling(temperature=1.0, top_p=0.5))[0].tolist() == [0, 1]


def test_a_wide_nucleus_is_found_in_a_large_vocabulary() -> None:
    logits = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    ids, _ = filtered(logits, Sampling(temperature=1.0, top_p=0.9))
    order, chances = ranked(logits), probabilities(logits, 1.0)
    count = int(np.searchsorted(np.cumsum(chances[order]), 0.9)) + 1
    assert ids.tolist() == sorted(order[:count])


def test_greedy_takes_the_first_of_equals() -> None:
    assert choose(LOGITS, Sampling(), 0, 0) == 3


def test_a_tiny_temperature_is_greedy_up_to_ties() -> None:
    assert {choose(LOGITS, Sampling(temperature=1e-30), 1, position) for position in range(50)} == {3, 4}


def test_masked_tokens_are_never_chosen() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], dtype=np.float32)
    assert {choose(logits, Sampling(temperature=1.0), 1, position) for position in range(200)} == {1, 3}


def test_uniforms_depend_on_seed_and_position_alone() -> None:
    assert uniform(1, 2) == uniform(1, 2)
    drawn = [uniform(seed, position) for seed in range(30) for position in range(30)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= u < 1 for u in drawn)
    assert abs(float(np.mean(drawn)) - 0.5) < 0.05


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = np.array([0.0, bad, 1.0], dtype=np.float32)
    with pytest.raises(RequestError, match="position 7: the model's largest logit is"):
        choose(logits, Sampling(), 0, 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -0.1}, r"temperature: got -0.1; give 0 \(greedy\) or a positive number"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"top_k": -1}, "top-k: got -1"),
        ({"top_p": 0.0}, "top-p: got 0.0"),
        ({"top_p": 1.5}, "top-p: got 1.5"),
        ({"min_p": -0.5}, "min-p: got -0.5"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_parameters_out_of_range_are_refused_in_one_line(options: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Sampling(**options)  # type: ignore[arg-type]
