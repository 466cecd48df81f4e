"""Answers that have at least so many tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.test_constraints import id_of, run, text_of, tokens_of
from tests.runtime.toy import EOS, Toy

from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling

ENDS = {EOS: 100.0}


@pytest.fixture(scope="module", params=[1, 2], ids=["depth-1", "depth-2"])
def engine(request: pytest.FixtureRequest, toy_artifact: Path) -> Iterator[Engine]:
    with Engine(toy_artifact, LimitOptions(depth=request.param)) as engine:
        yield engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_ends_an_answer_before(engine: Engine, temperature: float) -> None:
    stop = id_of("x")
    for bias, last in ((ENDS, EOS), ({stop: 100.0}, stop)):
        sampling = Sampling(temperature, seed=3, logit_bias=bias)
        for least in (0, 1, 7):
            asked = GenerationRequest([9, 8], 20, sampling, stop_token_ids=(stop,), min_tokens=least)
            (events,) = run(engine, [asked])
            tokens = tokens_of(events)
            assert (len(tokens), tokens[-1], events[-1].stopped_by) == (least + 1, last, last)
            assert not {EOS, stop} & set(tokens[:-1])


def test_until_then_the_largest_of_the_others_is_taken(engine: Engine, toy: Toy) -> None:
    ids = [9, 8]
    stop = toy.greedy(ids, 4)
    (events,) = run(engine, [GenerationRequest(ids, 8, stop_token_ids=tuple(stop), min_tokens=5, ignore_eos=True)])
    for token in tokens_of(events)[:5]:
        logits = toy.logits(ids)[-1]
        logits[stop] = -1e9
        assert token == int(logits.argmax())
        ids.append(token)


def test_stop_strings_count_from_then_on(engine: Engine) -> None:
    sampling = Sampling(logit_bias={id_of("x"): 100.0})
    for least, shown in ((0, ""), (1, "x"), (3, "xxx")):
        (events,) = run(engine, [GenerationRequest([9], 20, sampling, stop=("xx",), min_tokens=least)])
        assert (text_of(events), events[-1].stopped_by, len(tokens_of(events))) == (shown, "xx", least + 2)


def test_a_constraint_ends_it_before_only_where_nothing_else_may_come(engine: Engine) -> None:
    sampling = Sampling(logit_bias=ENDS)
    for least, length in ((0, 1), (3, 3), (9, 5)):
        for ignore_eos in (False, True):
            asked = GenerationRequest(
                [9], 20, sampling, constraint=Constraint("regex", "[ab]{1,5}"), min_tokens=least, ignore_eos=ignore_eos
            )
            (events,) = run(engine, [asked])
            assert len(text_of(events)) == (5 if ignore_eos else length)
            assert tokens_of(events)[-1] == EOS


def test_others_in_the_batch_make_no_difference(engine: Engine) -> None:
    asked = [
        GenerationRequest([9, i], 12, Sampling(float(i % 2), seed=i), stop_token_ids=tuple(range(0, 250, 2)), min_tokens=i)
        for i in range(6)
    ]
    together = [tokens_of(events) for events in run(engine, asked)]
    assert together == [tokens_of(run(engine, [one])[0]) for one in asked]
    assert all(len(tokens) > i for i, tokens in enumerate(together))


def test_more_than_the_most_is_refused() -> None:
    for least, most in ((-1, None), (5, 4)):
        with pytest.raises(RequestError, match=f"min-tokens: got {least}"):
            GenerationRequest([9], most, min_tokens=least)
