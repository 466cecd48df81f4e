"""Second tokens beside guesses, each verified with what follows it: what comes is the same, whatever the scheduler does meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.models.conftest import PICO
from tests.models.running import compiled
from tests.models.test_drafts import requests
from tests.models.tiny import BY_NAME, TinyModels
from tests.runtime.test_speculation import every_draft, tokens_of
from tests.runtime.toy import Toy, write_artifact

from tsc.request import Cache
from tsrun.branches import Branches, Grown
from tsrun.chains import Link
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import Event, GenerationRequest, StepLogits, TokenLogprobs
from tsrun.guesses import GuessDrafter
from tsrun.limits import LimitOptions
from tsrun.output import Second
from tsrun.sampler import Sampling
from tsrun.step_cost import StepCost

OFF = LimitOptions(num_pages=2048, speculate="off")
TREE = LimitOptions(num_pages=2048, speculate="mtp", branches=3, max_sequences=5)
OPTIONS = {
    "roomy": TREE,
    "preempted": replace(TREE, num_pages=40, page_size=4, max_sequences=8),
    "short steps": replace(TREE, page_size=2, max_step_tokens=18, max_sequences=2, depth=1),
    "no prefix cache": replace(TREE, page_size=1, prefix_cache=False, max_sequences=3),
}
SLOW = ("short steps", "no prefix cache")
FEW = 3  # guesses of a chain, so that there are rows for branches


@pytest.fixture
def came(guesses_alone: None, monkeypatch: pytest.MonkeyPatch) -> list[Grown]:
    """Every branch is verified, whether it pays or not. Those that come."""
    found: list[Grown] = []
    keep = Branches.keep

    def note(self: Branches, came: Iterable[Grown]) -> None:
        noted = [*came]
        found.extend(noted)
        keep(self, noted)

    def few(self: StepCost, count: int, chances: Sequence[Sequence[float]], most: int, *_: object) -> list[int]:
        return every_draft(self, count, [chain[:FEW] for chain in chances], most)

    monkeypatch.setattr(Branches, "keep", note)
    monkeypatch.setattr(StepCost, "depths", few)
    monkeypatch.setattr(StepCost, "branches", lambda self, rows, expected, branches, most: list(range(len(branches)))[:most])
    return found


def asked_of(path: Path, count: int) -> list[GenerationRequest]:
    """Chosen and ended in several ways, and some whose beginning another one has."""
    asked = requests(path, count)
    with Engine(path, OFF) as engine:
        assert engine.tokenizer is not None
        ends = tuple(engine.tokenizer.encode("=():")), (" self", "\n\n", "return")
    asked[1::6] = [replace(one, stop_token_ids=ends[0]) for one in asked[1::6]]
    asked[4::6] = [replace(one, stop=ends[1]) for one in asked[4::6]]
    asked[5::6] = [replace(one, logprobs=2) for one in asked[5::6]]
    return [*asked, *(replace(one, sampling=Sampling(0.9, seed=i)) for i, one in enumerate(asked[: count // 4]))]


Came = tuple[list[int], tuple[object, ...], tuple[str, list[TokenLogprobs]]]


def run(path: Path, options: LimitOptions, asked: Sequence[GenerationRequest]) -> tuple[list[Came], int]:
    """What came of each, log probabilities to the bit; how often one was preempted."""
    events: dict[int, list[Event]] = {}
    with Engine(path, options, threads=1) as engine:
        for request in asked:
            events[engine.submit(request)] = []
        for event in engine.events():
            events[event.request].append(event)
        ends = [(each[-1].finish_reason, each[-1].stopped_by, each[-1].error) for each in events.values()]
        told = [("".join(e.text for e in each), [one for e in each for one in e.logprobs]) for each in events.values()]
        # A stop may cut what was drafted and the token that follows it.
        assert all(e.accepted < max(1, len(e.token_ids) + (e.finish_reason is not None)) for each in events.values() for e in each)
        return [*zip(map(tokens_of, events.values()), ends, told, strict=True)], engine.num_preemptions


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OPTIONS])
def test_branches_change_no_token(trained: Path, name: str, came: list[Grown]) -> None:
    asked = asked_of(trained, 12)
    expected, _ = run(trained, OFF, asked)
    found, preemptions = run(trained, OPTIONS[name], asked)
    assert found == expected
    assert (preemptions > 0) == (name == "preempted")
    assert len(came) >= 10
    assert len({grown.branch.place for grown in came}) > 1


@pytest.mark.slow
def test_branches_change_no_token_of_a_hundred_answers(trained: Path, came: list[Grown]) -> None:
    asked = [replace(one, sampling=Sampling()) for one in requests(trained, 100)]
    expected, _ = run(trained, OFF, asked)
    assert run(trained, replace(TREE, page_size=4, max_sequences=8), asked)[0] == expected
    assert len(came) > 150


@pytest.mark.slow
def test_branches_of_two_ranks_change_no_token(trained: Path, came: list[Grown], tmp_path: Path) -> None:
    path = compiled(PICO, tmp_path / "two.tsa", tp=2, dtype="bf16")
    asked = asked_of(trained, 8)
    assert run(path, replace(TREE, page_size=4), asked)[0] == run(path, OFF, asked)[0]
    assert len(came) >= 5


def test_what_a_branch_has_computed_is_found_again(trained: Path, came: list[Grown]) -> None:
    """The next turn begins with pages of the last answer, of which branches have computed some."""
    asked = [replace(one, max_tokens=40, ignore_eos=True, sampling=Sampling()) for one in requests(trained, 6)]
    first = [tokens for tokens, *_ in run(trained, OFF, asked)[0]]
    again = [replace(one, prompt=[*one.prompt, *tokens[:-1]], max_tokens=8) for one, tokens in zip(asked, first, strict=True)]
    expected, _ = run(trained, OFF, again)
    with Engine(trained, replace(TREE, page_size=4), threads=1) as engine:
        for turn, wanted in ((asked, first), (again, [tokens for tokens, *_ in expected])):
            numbers = [engine.submit(request) for request in turn]
            events = list(engine.events())
            assert [tokens_of([e for e in events if e.request == number]) for number in numbers] == wanted
        assert all(event.cached_tokens >= 35 for event in events if event.cached_tokens)
        assert sum(event.cached_tokens for event in events) > 0
    assert len(came) >= 5


@pytest.mark.parametrize("cache", ["dtype", "int8"])
def test_branches_have_their_pages_in_every_window(
    tiny: TinyModels, cache: Cache, came: list[Grown], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that drafts for itself is right, and made wrong here as often as not, so that the second token comes."""
    take = Link.take

    def exchanged(self: Link, token: int, second: Second | None, vocabulary: int) -> bool:
        if second is None or token % 2:
            return take(self, token, second, vocabulary)
        return take(self, second[0], (token, 0.5), vocabulary)

    monkeypatch.setattr(Link, "take", exchanged)
    artifact = tiny.artifact(BY_NAME["gemma3"], dtype="bf16", cache=cache)
    asked = [GenerationRequest([(7 * i + j) % 50 for j in range(5 + 9 * i)], 40, ignore_eos=True, logprobs=1) for i in range(6)]
    options = LimitOptions(num_pages=512, page_size=4, max_step_tokens=32)
    expected, _ = run(artifact, replace(options, speculate="off"), asked)
    found, _ = run(artifact, replace(options, draft=str(artifact), branches=2), asked)
    assert found == expected
    assert len(came) > 30


def test_guesses_go_on_from_a_branch(trained: Path, came: list[Grown], monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry for drafts sees the rows of a branch that came as it sees those of drafts: it guesses the same after as many tokens."""
    [asked] = [replace(one, ignore_eos=True, sampling=Sampling(0.8, seed=1), max_tokens=240) for one in requests(trained, 10)[9:]]
    guessed: list[dict[int, list[int]]] = []
    guess = GuessDrafter.guess

    def noted(self: GuessDrafter, tokens: list[int], beside: list[Second | None]) -> None:
        guessed[-1][len(self.tokens)] = tokens
        guess(self, tokens, beside)

    monkeypatch.setattr(GuessDrafter, "guess", noted)
    for options in (TREE, replace(TREE, branches=None)):
        guessed.append({})
        run(trained, options, [asked])
    both = [length for length in guessed[0] if length in guessed[1]]
    assert len(both) > 10
    assert [guessed[0][length] for length in both] == [guessed[1][length] for length in both]
    assert len(came) >= 3


def test_an_observer_sees_the_rows_of_branches_that_came(trained: Path, came: list[Grown]) -> None:
    [asked] = [replace(one, ignore_eos=True, sampling=Sampling(), max_tokens=40) for one in requests(trained, 8)[7:]]
    seen: dict[int, int] = {}

    def look(step: StepLogits) -> None:
        for position, row in zip(step.positions.tolist(), step.logits, strict=True):
            seen[position + 1] = int(np.argmax(row))

    with Engine(trained, TREE, threads=1, observer=look) as engine:
        engine.submit(asked)
        tokens = [token for event in engine.events() for token in event.token_ids]
    assert came
    assert [seen[len(asked.prompt) + i] for i in range(len(tokens))] == tokens


def test_who_can_not_have_branches_is_told(tmp_path: Path) -> None:
    toy = write_artifact(Toy(), tmp_path / "toy.tsa")
    with pytest.raises(RequestError, match=r"branches: no model guesses tokens; give --speculate mtp or --draft NAME\.tsa with it"):
        Engine(toy, LimitOptions(branches=2))
    for count, mend in ((0, "give a positive count"), (5, "give at most 4")):
        with pytest.raises(RequestError, match=f"branches: got {count}; {mend}"):
            LimitOptions(branches=count, speculate="mtp")
