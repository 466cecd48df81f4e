"""The sampler against its definition, which is held to exact probabilities and to what each filter promises.

Dimensions: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from tests.runtime import numpy_sampler
from tests.runtime.numpy_sampler import filtered

from tsrun import _core
from tsrun.errors import RequestError
from tsrun.output import Output
from tsrun.sampler import Draws, Sampling

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 3.0, -4.0, 1.0, 0.0], dtype=np.float32)


def stored(numbers: ArrayLike, dtype: str = "f32") -> NDArray[np.generic]:
    """As a program leaves them; bf16 by cutting off."""
    array = np.asarray(numbers, dtype=np.float32)
    if dtype == "bf16":
        return (array.view(np.uint32) >> 16).astype(np.uint16)
    return array.astype({"f32": np.float32, "f16": np.float16, "f64": np.float64}[dtype])


def output(rows: NDArray[np.generic], dtype: str) -> Output:
    return Output(rows.ctypes.data, dtype, rows.shape)


def choose(logits_RV: ArrayLike, samplings: Sequence[Sampling | None], positions: Sequence[int], dtype: str = "f32") -> list[int]:
    """The token of each row."""
    rows = stored(logits_RV, dtype)
    draws = Draws([None if s is None else s.sampler() for s in samplings], np.array(positions, dtype=np.int32))
    return [int(token) for token in draws.choose(output(rows, dtype)).tokens]


def choose_each(logits_V: NDArray[np.float32], sampling: Sampling, positions: Sequence[int], dtype: str = "f32") -> list[int]:
    """The token of a row at each of the positions."""
    rows = stored(logits_V[None], dtype)
    samplers = [sampling.sampler()]
    return [int(Draws(samplers, np.array([p], dtype=np.int32)).choose(output(rows, dtype)).tokens[0]) for p in positions]


def assert_defined(logits_V: NDArray[np.float32], sampling: Sampling, positions: Sequence[int], dtype: str = "f32") -> None:
    """The tokens are those of the definition, but where a random number is within rounding of the border between two."""
    rows = stored(logits_V[None], dtype)
    assert sampling.seed is not None
    ids, weights = filtered(output(rows, dtype).numbers()[0], sampling)
    shares = np.cumsum(weights) / weights.sum()
    for position, token in zip(positions, choose_each(logits_V, sampling, positions, dtype), strict=True):
        place = int(np.searchsorted(ids, token))
        assert ids[place] == token
        low, high = 0.0 if place == 0 else shares[place - 1], shares[place]
        assert low - 3e-7 <= numpy_sampler.uniform(sampling.seed, position) <= high + 3e-7


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
    counts = np.bincount(choose_each(LOGITS, replace(sampling, seed=5), range(draws)), minlength=len(LOGITS))
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


FILTERS = [
    Sampling(temperature=1.0, seed=7),
    Sampling(temperature=0.6, seed=7),
    Sampling(temperature=1.0, top_k=50, seed=7),
    Sampling(temperature=1.0, top_k=3000, seed=7),
    Sampling(temperature=1.0, top_p=0.95, seed=7),
    Sampling(temperature=1.0, top_p=0.2, seed=7),
    Sampling(temperature=1.0, top_p=0.999999, seed=7),
    Sampling(temperature=1.0, min_p=0.05, seed=7),
    Sampling(temperature=1.4, top_k=900, top_p=0.9, min_p=0.01, seed=7),
]


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f64"])
@pytest.mark.parametrize("V", [1, 7, 127, 128, 129, 5000])
def test_tokens_are_those_of_the_definition(V: int, dtype: str, sampling: Sampling) -> None:
    generator = np.random.default_rng(V)
    for width in (0.5, 4.0):
        assert_defined((generator.normal(size=V) * width).astype(np.float32), sampling, range(25), dtype)


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_large_vocabulary_is_as_defined(dtype: str, sampling: Sampling) -> None:
    generator = np.random.default_rng(5)
    for width in (1.0, 4.0):
        assert_defined((generator.normal(size=262_144) * width).astype(np.float32), sampling, range(2), dtype)


@given(
    some_logits,
    st.floats(0.1, 30.0),
    st.integers(0, 50),
    st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    st.one_of(st.just(0.0), st.floats(0.0, 0.99)),
    st.integers(0, 2**64 - 1),
)
def test_any_filters_are_as_defined(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    assert_defined(logits, Sampling(temperature, top_k, top_p, min_p, seed), range(8))


@given(some_logits, st.integers(1, 50))
def test_every_one_of_the_k_largest_is_chosen_at_some_position(logits: NDArray[np.float32], k: int) -> None:
    sampling = Sampling(temperature=1e6, top_k=k, seed=1)
    kept = ranked(logits)[:k]
    chosen = set(choose_each(logits, sampling, range(60 * len(kept) if len(kept) < 5 else 30)))
    assert chosen == set(kept) if len(kept) < 5 else chosen <= set(kept)


def test_a_row_of_equals_is_cut_at_an_id() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    for sampling in (Sampling(temperature=1.0, top_k=130, seed=1), Sampling(temperature=1.0, top_p=0.13, seed=1)):
        chosen = choose_each(logits, sampling, range(2000))
        assert max(chosen) == 129
        assert len(set(chosen)) == 130


def test_greedy_takes_the_first_of_equals() -> None:
    assert choose_each(LOGITS, Sampling(), [0]) == [3]
    wide = np.zeros(700, dtype=np.float32)
    wide[[300, 301, 699]] = 2
    assert choose_each(wide, Sampling(), [0]) == [300]


@pytest.mark.parametrize("temperature", [1e-30, 1e-320])
def test_a_tiny_temperature_is_greedy_up_to_ties(temperature: float) -> None:
    assert set(choose_each(LOGITS, Sampling(temperature=temperature, seed=1), range(50))) == {3, 4}


def test_a_huge_temperature_makes_all_equally_likely() -> None:
    assert set(choose_each(LOGITS, Sampling(temperature=1e300, seed=1), range(200))) == set(range(len(LOGITS)))


@pytest.mark.parametrize("sampling", FILTERS, ids=str)
def test_masked_tokens_are_never_chosen(sampling: Sampling) -> None:
    logits = np.full(3000, -np.inf, dtype=np.float32)
    logits[[1, 3, 2999]] = 0
    assert set(choose_each(logits, replace(sampling, top_p=1.0), range(300))) == {1, 3, 2999}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2))
def test_uniforms_have_the_bits_of_numpy(seed: int, position: int) -> None:
    assert _core.uniform(seed, position) == numpy_sampler.uniform(seed, position)


def test_uniforms_depend_on_seed_and_position_alone() -> None:
    drawn = [_core.uniform(seed, position) for seed in range(30) for position in range(30)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= u < 1 for u in drawn)
    assert abs(float(np.mean(drawn)) - 0.5) < 0.05


def test_a_row_has_its_token_in_any_company() -> None:
    generator = np.random.default_rng(2)
    rows = (generator.normal(size=(len(FILTERS) + 1, 3000)) * 3).astype(np.float32)
    samplings, positions = [Sampling(), *FILTERS], list(range(len(rows)))
    together = choose(rows, samplings, positions)
    assert together == [choose(rows[i : i + 1], samplings[i : i + 1], positions[i : i + 1])[0] for i in positions]
    assert choose(rows[::-1].copy(), samplings[::-1], positions[::-1]) == together[::-1]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: choose(rows, samplings, positions), range(16))) == [together] * 16


def test_rows_without_a_sampler_are_not_looked_at() -> None:
    rows = np.array([[np.nan, 0], [0, 1], [np.inf, 0]], dtype=np.float32)
    assert choose(rows, [None, Sampling(), None], [0, 0, 0]) == [0, 1, 0]


def test_the_largest_that_a_program_has_found_is_the_greedy_token() -> None:
    rows = np.array([[0, 1], [-np.inf, 1]], dtype=np.float32)
    largest = np.array([-1, 0], dtype=np.int32)
    draws = Draws([Sampling().sampler(), Sampling(temperature=1.0).sampler()], np.zeros(2, dtype=np.int32))
    assert draws.choose(replace(output(rows, "f32"), largest=largest)).tokens.tolist() == [-1, 1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=2)], ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "f64"])
@pytest.mark.parametrize("place", [0, 5, 299])
def test_logits_that_are_no_numbers_give_no_token(place: int, dtype: str, sampling: Sampling) -> None:
    for bad in (np.nan, -np.nan, np.inf):
        logits = np.zeros((1, 300), dtype=np.float32)
        logits[0, place] = bad
        assert choose(logits, [sampling], [7], dtype) == [-1]
    assert choose(np.full((1, 300), -np.inf), [sampling], [7], dtype) == [-1]


def test_f16_is_read_exactly() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    pairs = np.stack([finite, np.roll(finite, 1)], axis=1)
    draws = Draws([Sampling().sampler()] * len(pairs), np.zeros(len(pairs), dtype=np.int32))
    assert draws.choose(output(pairs, "f16")).tokens.tolist() == np.argmax(pairs, axis=1).tolist()


def test_what_can_not_be_logits_is_refused() -> None:
    rows, one = np.zeros((1, 4), dtype=np.float32), np.zeros(1, dtype=np.int32)
    sampler = Sampling().sampler()
    with pytest.raises(ValueError, match="logits can not be of type `i32`"):
        _core.choose(rows.ctypes.data, "i32", 4, [sampler], one)
    with pytest.raises(ValueError, match="an element for each sampler"):
        _core.choose(rows.ctypes.data, "f32", 4, [sampler, None], one)
    with pytest.raises(ValueError, match="a row of logits has"):
        _core.choose(rows.ctypes.data, "f32", 0, [sampler], one)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    assert Sampling(seed=2**64 - 1).sampler().seed == 2**64 - 1
    assert Sampling().sampler().seed != Sampling().sampler().seed


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
        ({"temperature": 10**400}, "temperature: got a number of too many digits"),
        ({"seed": 10**5000}, "seed: got a number of too many digits"),
        ({"seed": 1.5}, "seed: got 1.5; give a whole number"),
        ({"top_k": 1.5}, "top-k: got 1.5; give a whole number"),
    ],
)
def test_parameters_out_of_range_are_refused_in_one_line(options: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Sampling(**options)  # type: ignore[arg-type]
