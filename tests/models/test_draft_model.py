"""A separate artifact that drafts. One that drafts for itself is always right, as long as its cache is; any other changes no token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.models.running import compiled
from tests.models.test_drafts import PICO, answers, requests
from tests.models.tiny import BY_NAME, TinyModels
from tests.runtime.toy import Toy, write_artifact

from tsrun.engine import Engine
from tsrun.errors import ArtifactError, RequestError
from tsrun.generation import GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling

OFF = LimitOptions(num_pages=2048, speculate="off")
ROOMY = LimitOptions(num_pages=2048)
OPTIONS = {
    "three at once": replace(ROOMY, max_sequences=3, depth=1),
    "short steps": replace(ROOMY, max_step_tokens=24, page_size=4),
    "preempted": LimitOptions(num_pages=50, page_size=4, max_sequences=8),
    "one page each": replace(ROOMY, page_size=64, prefix_cache=False),
}

SLOW = ("three at once", "one page each")


@pytest.fixture
def pico(trained: Path) -> Path:
    return trained


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(PICO / "checkpoint", tmp_path_factory.mktemp("int4") / "int4.tsa", dtype="bf16", quantize="int4")


def greedy(path: Path, count: int, tokens: int = 24) -> list[GenerationRequest]:
    return [replace(one, sampling=Sampling(), max_tokens=tokens) for one in requests(path, count)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OPTIONS])
def test_a_model_that_drafts_for_itself_is_right(pico: Path, name: str, guesses_alone: None) -> None:
    """Whatever the scheduler does with the pages: a row of its cache that is missing or another's would make it wrong."""
    asked = greedy(pico, 8)
    asked += asked[:2]  # by the prefix cache
    expected, _, _ = answers(pico, OFF, asked)
    options = replace(OPTIONS[name], draft=str(pico))
    with Engine(pico, options, threads=2) as engine:
        found: dict[int, list[int]] = {engine.submit(request): [] for request in asked}
        for event in engine.events():
            found[event.request] += event.token_ids
        assert (engine.num_preemptions > 0) == (name == "preempted")
        assert [*found.values()] == expected
        assert engine.speculated.accepted_tokens == engine.speculated.draft_tokens > 100


def test_caches_with_windows_draft_as_others_do(tiny: TinyModels, guesses_alone: None) -> None:
    artifact = tiny.artifact(BY_NAME["gemma3"], dtype="bf16")
    asked = [GenerationRequest([(7 * i + j) % 50 for j in range(5 + 9 * i)], 40, ignore_eos=True) for i in range(6)]
    options = LimitOptions(num_pages=512, page_size=4, max_step_tokens=32)
    expected, _, _ = answers(artifact, replace(options, speculate="off"), asked)
    found, drafted, accepted = answers(artifact, replace(options, draft=str(artifact)), asked)
    assert found == expected
    assert accepted == drafted > 100


def check(target: Path, draft: Path, count: int) -> None:
    asked = requests(target, count)
    expected, _, _ = answers(target, OFF, asked)
    for options in (replace(ROOMY, max_sequences=5), LimitOptions(num_pages=60, max_sequences=8, max_step_tokens=24, depth=1)):
        found, drafted, accepted = answers(target, replace(options, draft=str(draft)), asked)
        assert found == expected
        assert drafted > 20 * count
        assert accepted > 0.3 * drafted
    found, _, _ = answers(target, replace(ROOMY, draft=str(draft)), asked, aborts=True)
    assert all(whole[: len(part)] == part for whole, part in zip(expected, found, strict=True))


def test_a_smaller_model_changes_no_token(pico: Path, int4: Path, guesses_alone: None) -> None:
    check(pico, int4, 5)


@pytest.mark.slow
def test_a_smaller_model_changes_no_token_of_a_hundred_answers(pico: Path, int4: Path, guesses_alone: None) -> None:
    check(pico, int4, 100)


def test_it_drafts_for_two_ranks(pico: Path, int4: Path, guesses_alone: None, tmp_path: Path) -> None:
    path = compiled(PICO / "checkpoint", tmp_path / "two.tsa", tp=2, dtype="bf16")
    asked = greedy(pico, 6)
    expected, _, _ = answers(path, OFF, asked)
    found, drafted, accepted = answers(path, replace(ROOMY, draft=str(int4)), asked)
    assert found == expected
    assert accepted > 0.3 * drafted > 40


def test_it_drafts_as_far_as_it_pays(pico: Path, int4: Path) -> None:
    """Nothing is told what to do here, but that the model is slow: it is left alone then."""
    asked = [replace(one, sampling=Sampling(1.0, seed=i), max_tokens=60) for i, one in enumerate(requests(pico, 4))]
    expected, _, _ = answers(pico, OFF, asked)
    found, _, _ = answers(pico, replace(ROOMY, draft=str(int4)), asked)
    assert found == expected


def test_who_can_not_draft_is_refused(pico: Path, int4: Path, tmp_path: Path) -> None:
    toy = write_artifact(Toy(), tmp_path / "toy.tsa")
    with pytest.raises(RequestError, match=rf"draft: {toy} has another tokenizer than pico.tsa; give a model of the same family"):
        Engine(pico, LimitOptions(draft=str(toy)))
    with pytest.raises(RequestError, match=r"draft: .*two.tsa is of 2 ranks, and the first rank alone drafts; compile it for one"):
        Engine(toy, LimitOptions(draft=str(write_artifact(Toy(), tmp_path / "two.tsa", ranks=2))))
    with pytest.raises(RequestError, match=r"draft: .*embeds.tsa gives embeddings, and no logits to guess by"):
        Engine(toy, LimitOptions(draft=str(write_artifact(Toy(embeds=True), tmp_path / "embeds.tsa"))))
    with pytest.raises(RequestError, match="speculate: the model gives embeddings, so that no drafts can be verified"):
        Engine(tmp_path / "embeds.tsa", LimitOptions(draft=str(toy)))
    with pytest.raises(ArtifactError, match=r"nowhere.tsa: does not exist"):
        Engine(pico, LimitOptions(draft=str(tmp_path / "nowhere.tsa")))
    with pytest.raises(RequestError, match=r"draft: given together with speculate mtp; leave one of them out"):
        LimitOptions(draft=str(int4), speculate="mtp")
    with pytest.raises(RequestError, match=r"speculate: there is no artifact that drafts; give one with --draft NAME.tsa"):
        LimitOptions(speculate="draft")
