"""With drafts the tokens of every request are those that come without, whatever it asks for and whoever else is there.

Where the drafts are to be hostile, or to come at all, they are told by an oracle: what comes without them, spoiled here and there. All that
verifies them is what runs in earnest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.toy import Toy, write_artifact

from tsrun import speculation
from tsrun.constraint import Constraint
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import Event, GenerationRequest, StepLogits
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling
from tsrun.step_cost import StepCost

OFF = LimitOptions(speculate="off")
Answers = dict[tuple[int, ...], list[int]]


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> list[list[Event]]:
    events: dict[int, list[Event]] = {engine.submit(request): [] for request in requests}
    for event in engine.events():
        events[event.request].append(event)
    assert not engine.num_open
    return list(events.values())


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def what_came(events: Sequence[Event]) -> tuple[object, ...]:
    """All that a request was told, however its tokens were cut into steps."""
    last = events[-1]
    logprobs = [one.logprob for event in events for one in event.logprobs]
    likeliest = [token for event in events for one in event.logprobs for token in (one.token, *(token for token, _ in one.top))]
    text = "".join(event.text for event in events)
    return tokens_of(events), text, last.finish_reason, last.stopped_by, last.error, likeliest, logprobs


def mixed_requests(count: int) -> list[GenerationRequest]:
    """Prompts that repeat themselves a little, and of everything that decides about tokens some."""
    some = random.Random(11)
    kinds: list[Callable[[GenerationRequest, int], GenerationRequest]] = [
        lambda r, _: r,
        lambda r, _: replace(r, ignore_eos=False),
        lambda r, seed: replace(r, sampling=Sampling(1.0, seed=seed)),
        lambda r, seed: replace(r, sampling=Sampling(1.4, top_k=20, top_p=0.9, min_p=0.02, seed=seed), logprobs=2),
        lambda r, seed: replace(r, sampling=Sampling(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.4)),
        lambda r, seed: replace(r, sampling=Sampling(1.0, seed=seed, frequency_penalty=1.0, logit_bias={65: 4.0, 66: 3.0})),
        lambda r, _: replace(r, logprobs=3),
        lambda r, seed: replace(r, stop=(chr(97 + seed % 26), "\n", "\x01")),
        lambda r, seed: replace(r, sampling=Sampling(1.0, seed=seed), stop_token_ids=tuple(range(40, 60))),
        lambda r, _: replace(r, ignore_eos=False, min_tokens=10),
        lambda r, seed: replace(r, constraint=Constraint("regex", "(ab|ba|c){2,30}"), sampling=Sampling(1.0, seed=seed), min_tokens=4),
        lambda r, _: replace(r, constraint=Constraint("regex", "([a-f]{3} ){1,12}"), min_tokens=6),
        lambda r, _: replace(r, constraint=Constraint("json_schema", json.dumps({"enum": ["aaaaaaaaaaaabbb", "aaaaaaaaaaaaccc"]}))),
        lambda r, _: replace(r, prompt_logprobs=1),
    ]
    made = []
    for index in range(count):
        few = some.choices(range(97, 123), k=3)
        prompt = [*some.choices(range(256), k=1 + index % 5), *few * (1 + index % 4), *some.choices(range(256), k=2)]
        plain = GenerationRequest(prompt, 12 + index % 37, ignore_eos=True)
        made.append(kinds[index % len(kinds)](plain, index))
    return made


class Oracle:
    """A drafter that knows what comes without drafts, and is wrong each so often."""

    def __init__(self, prompt: Sequence[int], answers: Answers, wrong: float) -> None:
        self._answer, self._place, self._has_begun = answers.get(tuple(prompt), []), 0, False
        self._wrong, self._random = wrong, random.Random(str(prompt))

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    def take(self, tokens: Sequence[int]) -> None:
        self._has_begun = True
        self._place += len(tokens)

    def draft(self, most: int) -> tuple[list[int], list[float]]:
        depth = self._random.randrange(1, most + 1) if self._has_begun else 0
        tokens = self._answer[self._place :][:depth]
        tokens += [self._random.randrange(256) for _ in range(depth - len(tokens))]
        spoiled = [self._random.randrange(256) if self._random.random() < self._wrong else token for token in tokens]
        return spoiled, [0.9] * len(spoiled)

    def expected(self) -> list[float]:
        return [0.9]

    def close(self) -> None:
        pass


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers, float], None]:
    def install(answers: Answers, wrong: float) -> None:
        class Oracles:
            def drafter(self, prompt: Sequence[int], salt: str | None, ends: Collection[int]) -> Oracle:
                return Oracle(prompt, answers, wrong)

        monkeypatch.setattr(speculation, "LookupDrafters", Oracles)
        monkeypatch.setattr(StepCost, "depths", every_draft)

    return install


def every_draft(self: StepCost, num_sequences: int, chances: Sequence[Sequence[float]], most: int, *_: object) -> list[int]:
    depths = []
    for chain in chances:
        depths.append(min(len(chain), most))
        most -= depths[-1]
    return depths


def answers_without(artifact: Path, requests: Sequence[GenerationRequest]) -> tuple[Answers, list[tuple[object, ...]]]:
    with Engine(artifact, OFF) as engine:
        found = run(engine, requests)
    assert not any(event.drafted for events in found for event in events)
    return {tuple(r.prompt): tokens_of(events) for r, events in zip(requests, found, strict=True)}, [what_came(one) for one in found]


@pytest.fixture(scope="module")
def without(toy_artifact: Path) -> tuple[list[GenerationRequest], Answers, list[tuple[object, ...]]]:
    requests = mixed_requests(100)
    return requests, *answers_without(toy_artifact, requests)


OPTIONS = {
    "roomy": LimitOptions(),
    "one step at a time": LimitOptions(depth=1),
    "short steps": LimitOptions(max_step_tokens=9),
    "few sequences": LimitOptions(max_sequences=3, page_size=1),
    "preempted": LimitOptions(max_sequences=16, num_pages=24, page_size=4),
    "the whole head": LimitOptions(screen=False, prefix_cache=False),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("wrong", [0.0, 0.15])
def test_a_hundred_answers_are_the_same_whatever_is_drafted(
    toy_artifact: Path,
    without: tuple[list[GenerationRequest], Answers, list[tuple[object, ...]]],
    oracle: Callable[[Answers, float], None],
    name: str,
    wrong: float,
) -> None:
    requests, answers, expected = without
    oracle(answers, wrong)
    with Engine(toy_artifact, OPTIONS[name]) as engine:
        requests = [r for r in requests if engine.limits.max_context >= len(r.prompt) + (r.max_tokens or 0)]
        found = run(engine, requests)
        total = engine.speculated
        assert (engine.num_preemptions > 0) == (name == "preempted")
    assert [what_came(events) for events in found] == expected[: len(found)]
    drafted = [sum(event.drafted for event in events) for events in found]
    accepted = [sum(event.accepted for event in events) for events in found]
    assert sum(map(bool, accepted)) > 60
    assert (sum(drafted), sum(accepted)) == (total.draft_tokens, total.accepted_tokens)
    if wrong and name == "roomy":
        assert sum(accepted) < 0.9 * sum(drafted)
    steps = [max(len(event.token_ids) for event in events) for events in found]
    assert max(steps) > (3 if name == "short steps" else 8)


def test_a_hundred_answers_are_the_same_with_lookup(
    toy_artifact: Path, without: tuple[list[GenerationRequest], Answers, list[tuple[object, ...]]]
) -> None:
    requests, _, expected = without
    with Engine(toy_artifact, LimitOptions(max_sequences=4)) as engine:
        for _ in range(2):  # then also by what was written before
            assert [what_came(events) for events in run(engine, requests)] == expected
        assert engine.speculated.accepted_tokens > 10


def test_two_ranks_verify_what_one_does(toy_artifact_of_two_ranks: Path, oracle: Callable[[Answers, float], None]) -> None:
    requests = mixed_requests(28)
    answers, expected = answers_without(toy_artifact_of_two_ranks, requests)
    oracle(answers, 0.1)
    with Engine(toy_artifact_of_two_ranks) as engine:
        found = run(engine, requests)
        assert engine.speculated.accepted_tokens > 100
    assert [what_came(events) for events in found] == expected


def test_what_follows_the_end_within_a_draft_is_dropped(toy_artifact: Path, oracle: Callable[[Answers, float], None]) -> None:
    prompt = [256, 72, 101, 108, 108, 111]
    answers, _ = answers_without(toy_artifact, [GenerationRequest(prompt, 40, ignore_eos=True)])
    answer = answers[tuple(prompt)]
    oracle(answers, 0.0)
    with Engine(toy_artifact) as engine:
        for place in (1, 5, 17):
            end = answer[place]
            length = answer.index(end) + 1
            (events,) = run(engine, [GenerationRequest(prompt, 40, ignore_eos=True, stop_token_ids=(end,))])
            assert (tokens_of(events), events[-1].finish_reason, events[-1].stopped_by) == (answer[:length], "stop", end)
            (events,) = run(engine, [GenerationRequest(prompt, place + 1, ignore_eos=True)])
            assert (tokens_of(events), events[-1].finish_reason) == (answer[: place + 1], "length")
        assert engine.speculated.accepted_tokens > 10
        (events,) = run(engine, [GenerationRequest(prompt, 40, ignore_eos=True)])  # by the prefix cache of what was cut off
        assert tokens_of(events) == answer


def test_requests_end_in_the_midst_of_drafts(toy_artifact: Path, oracle: Callable[[Answers, float], None]) -> None:
    """By an abort while a step with their drafts is under way, and by their deadline; the others notice nothing."""
    requests = [replace(r, max_tokens=40, constraint=None, stop=(), min_tokens=0, ignore_eos=True) for r in mixed_requests(12)]
    answers, expected = answers_without(toy_artifact, requests)
    oracle(answers, 0.2)
    with Engine(toy_artifact) as engine:
        late = engine.submit(replace(requests[0], deadline_seconds=1e-9))
        numbers = [engine.submit(request) for request in requests]
        events: dict[int, list[Event]] = {number: [] for number in (late, *numbers)}
        some = random.Random(5)
        aborted: set[int] = set()
        while engine.num_open:
            for event in engine.step():
                events[event.request].append(event)
            if some.random() < 0.3 and len(aborted) < 5:
                aborted.add(some.choice(numbers))
                engine.abort(max(aborted))
        assert events[late][-1].finish_reason == "deadline"
        for number, each, answer in zip(numbers, [events[number] for number in numbers], expected, strict=True):
            if each[-1].finish_reason == "abort":
                assert number in aborted
                assert tokens_of(each) == list(answers[tuple(requests[number - 1].prompt)])[: len(tokens_of(each))]
            else:
                assert what_came(each) == answer
        assert not engine.load().running


def test_an_observer_sees_the_logits_of_each_token(toy_artifact: Path, toy: Toy, oracle: Callable[[Answers, float], None]) -> None:
    prompt = [256, 72, 101]
    answers, _ = answers_without(toy_artifact, [GenerationRequest(prompt, 30, ignore_eos=True)])
    oracle(answers, 0.2)
    seen: dict[int, np.ndarray] = {}

    def look(step: StepLogits) -> None:
        for position, is_one, row in zip(step.positions.tolist(), step.samples, step.logits, strict=True):
            if is_one:
                assert position not in seen
                seen[position] = row.copy()

    with Engine(toy_artifact, observer=look) as engine:
        (events,) = run(engine, [GenerationRequest(prompt, 30, ignore_eos=True)])
        assert engine.speculated.accepted_tokens > 5
    ids = [*prompt, *tokens_of(events)]
    assert sorted(seen) == list(range(len(prompt) - 1, len(ids) - 1))
    logits = toy.logits(ids).numpy()
    for position, row in seen.items():
        np.testing.assert_allclose(row, logits[position], rtol=1e-4, atol=1e-4)


def test_drafts_cost_no_prefix_that_others_could_find(toy_artifact: Path, oracle: Callable[[Answers, float], None]) -> None:
    """Nor do drafts that were wrong stay where another finds them."""
    first = GenerationRequest(list(range(40, 60)), 40, ignore_eos=True)
    answers, _ = answers_without(toy_artifact, [first])
    oracle(answers, 0.3)
    with Engine(toy_artifact) as engine:
        (events,) = run(engine, [first])
        answer = tokens_of(events)
        number = engine.submit(GenerationRequest([*first.prompt, *answer, 7], 10, ignore_eos=True))
        again = list(engine.events())
        assert max(event.cached_tokens for event in again) == (len(first.prompt) + len(answer) - 1) // 16 * 16
    with Engine(toy_artifact, OFF) as engine:
        (alone,) = run(engine, [GenerationRequest([*first.prompt, *answer, 7], 10, ignore_eos=True)])
    assert tokens_of([event for event in again if event.request == number]) == tokens_of(alone)


def test_what_can_not_be_verified_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    artifact = write_artifact(Toy(embeds=True), tmp_path / "embeds.tsa")
    with pytest.raises(RequestError, match="speculate: the model gives embeddings, so that no drafts can be verified; leave it out"):
        Engine(artifact, LimitOptions(speculate="lookup"))
    Engine(artifact).close()
