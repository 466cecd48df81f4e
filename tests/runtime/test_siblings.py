"""Several answers to one prompt: it is computed once, and each answer is that of its own seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.executor import Executor
from tsrun.generation import GenerationRequest, siblings
from tsrun.limits import LimitOptions
from tsrun.output import Output
from tsrun.sampler import Draws, Sampling
from tsrun.step import Step

PROMPT = list(range(40, 83))
PAGE = 4
both_depths = pytest.mark.parametrize("depth", [1, 2])


@both_depths
@pytest.mark.parametrize("max_step_tokens", [128, 10])
def test_the_prompt_is_computed_once(toy_artifact: Path, depth: int, max_step_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = Executor.run

    def count(self: Executor, step: Step, draws: Draws | None) -> Output:
        rows.append(int((step.spans[:, 1] - step.spans[:, 0])[step.spans[:, 1] <= len(step.ids)].sum()))
        return run(self, step, draws)

    monkeypatch.setattr(Executor, "run", count)
    with Engine(toy_artifact, LimitOptions(page_size=PAGE, depth=depth, max_step_tokens=max_step_tokens)) as engine:
        n, made = 6, 5
        numbers = [engine.submit(one) for one in siblings(GenerationRequest(PROMPT, made, Sampling(1.0, seed=3), ignore_eos=True), n)]
        cached = {event.request: event.cached_tokens for event in engine.events()}
    shared = (len(PROMPT) - 1) // PAGE * PAGE
    assert [cached[number] for number in numbers] == [0, *[shared] * (n - 1)]
    late = 1 if depth == 2 else 0  # rows of a step that was planned before the last token was known to be the last
    assert sum(rows) <= len(PROMPT) + (n - 1) * (len(PROMPT) - shared) + n * (made - 1 + late)


@both_depths
def test_each_answer_is_that_of_its_seed(toy_artifact: Path, depth: int) -> None:
    request = GenerationRequest(PROMPT, 12, Sampling(1.5, seed=2**64 - 2), ignore_eos=True)
    with Engine(toy_artifact, LimitOptions(page_size=PAGE, depth=depth)) as engine:

        def answers(requests: list[GenerationRequest]) -> list[list[int]]:
            found: dict[int, list[int]] = {engine.submit(one): [] for one in requests}
            for event in engine.events():
                found[event.request].extend(event.token_ids)
            return list(found.values())

        together = answers(siblings(request, 4))
        assert len({tuple(answer) for answer in together}) == 4
        seeds = [2**64 - 2, 2**64 - 1, 0, 1]
        alone = [answers([GenerationRequest(PROMPT, 12, Sampling(1.5, seed=seed), ignore_eos=True)])[0] for seed in seeds]
    assert together == alone


def test_without_a_seed_each_draws_its_own(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        numbers = [engine.submit(one) for one in siblings(GenerationRequest(PROMPT, 2, Sampling(1.0)), 3)]
        assert len({engine.seed_of(number) for number in numbers}) == 3


@pytest.mark.parametrize("n", [0, 129])
def test_a_count_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(RequestError, match=f"n: got {n}; give a count from 1 to 128"):
        siblings(GenerationRequest(PROMPT), n)
