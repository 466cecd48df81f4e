"""What a request is answered does not depend on what else the engine does: who came when, how many pages there are, how prompts are cut
into chunks, what is found in the prefix cache, how many steps are under way, and who is aborted.

Two hundred requests, of conversations whose turns are submitted as soon as the turn before is answered. Element type f32, greedy; every
second layer has a sliding window, which most prompts are longer than. The reference is an engine that answers one request at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.runtime.conversations import MOST_TOKENS, Outcome, Turn, all_at_once, differing, one_by_one, script
from tests.runtime.toy import Toy, write_artifact

from tsrun.limits import LimitOptions

SCRIPT = script(20, 10)
PAGES = {
    "plenty": LimitOptions(),
    "tight": LimitOptions(page_size=4, num_pages=200),
    "thrashing": LimitOptions(page_size=1, num_pages=200),
}
"""The longest request has up to 200 tokens, and up to 20 are open at once, beside those that are aborted."""
LONG = Toy(context=256)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """The engines here compute with one thread, since their matrices are small; what other files do stays as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(LONG, tmp_path_factory.mktemp("behaviour") / "toy.tsa")


@pytest.fixture(scope="module")
def expected(artifact: Path) -> dict[Turn, list[int]]:
    return one_by_one(artifact, SCRIPT)


def options_of(pages: str, chunk: int, depth: int, prefix_cache: bool) -> LimitOptions:
    return replace(PAGES[pages], max_step_tokens=chunk, depth=depth, prefix_cache=prefix_cache)


def check(outcome: Outcome, expected: dict[Turn, list[int]], options: LimitOptions, pages: str) -> None:
    assert differing(outcome.answers, expected) == {}
    # The case was what it says.
    if pages == "plenty":
        assert outcome.preemptions == 0
    elif pages == "thrashing" and options.max_step_tokens > 7:  # in shorter steps prompts take so long that few requests run at once
        assert outcome.preemptions > 0
    if options.prefix_cache:
        assert outcome.cached_tokens > outcome.prompt_tokens // (2 if pages == "plenty" else 10)
    else:
        assert outcome.cached_tokens == 0


def test_the_conversations_are_what_the_tests_need(expected: dict[Turn, list[int]]) -> None:
    assert len(SCRIPT.turns) == len(expected) == 200
    ended_early = [turn for turn, answer in expected.items() if len(answer) < MOST_TOKENS]
    assert 20 < len(ended_early) < 180
    assert len({tuple(answer) for answer in expected.values()}) > 150
    lengths = [len(SCRIPT.openings[c]) + sum(len(words) for words in SCRIPT.said[c]) for c in range(20)]
    assert min(lengths) > 2 * LONG.window


def test_the_reference_is_plain_torch(expected: dict[Turn, list[int]]) -> None:
    history = list(SCRIPT.openings[3])
    for k, words in enumerate(SCRIPT.said[3]):
        history += words
        answer = expected[3, k]
        assert LONG.greedy(history, len(answer)) == answer
        history += answer


@pytest.mark.parametrize("prefix_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("depth", [1, 2], ids=["depth-1", "depth-2"])
@pytest.mark.parametrize("chunk", [pytest.param(7, marks=pytest.mark.slow), 64], ids=["chunks-of-7", "chunks-of-64"])
@pytest.mark.parametrize("pages", PAGES)
def test_answers_are_those_of_one_request_at_a_time(
    artifact: Path, expected: dict[Turn, list[int]], pages: str, chunk: int, depth: int, prefix_cache: bool
) -> None:
    options = options_of(pages, chunk, depth, prefix_cache)
    check(all_at_once(artifact, SCRIPT, options, seed=1, aborts=True), expected, options, pages)


def test_answers_are_the_same_when_nobody_is_aborted(artifact: Path, expected: dict[Turn, list[int]]) -> None:
    for pages in PAGES:
        options = options_of(pages, 64, 2, True)
        check(all_at_once(artifact, SCRIPT, options, seed=2), expected, options, pages)


@pytest.mark.parametrize(("pages", "depth"), [pytest.param("plenty", 2, marks=pytest.mark.slow), ("tight", 1)])
def test_answers_are_the_same_when_each_step_has_one_token(artifact: Path, expected: dict[Turn, list[int]], pages: str, depth: int) -> None:
    options = options_of(pages, 1, depth, True)
    outcome = all_at_once(artifact, SCRIPT, options, seed=3, aborts=True)
    assert differing(outcome.answers, expected) == {}
    assert outcome.cached_tokens > 0


@pytest.mark.slow
@pytest.mark.parametrize("prefix_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("depth", [1, 2], ids=["depth-1", "depth-2"])
@pytest.mark.parametrize("chunk", [1, 5, 512])
@pytest.mark.parametrize("pages", PAGES)
def test_answers_are_those_of_one_request_at_a_time_in_any_order(
    artifact: Path, expected: dict[Turn, list[int]], pages: str, chunk: int, depth: int, prefix_cache: bool
) -> None:
    options = options_of(pages, chunk, depth, prefix_cache)
    seed = 10 + sorted(PAGES).index(pages) + chunk + depth + prefix_cache
    outcome = all_at_once(artifact, SCRIPT, options, seed=seed, aborts=seed % 2 == 0)
    assert differing(outcome.answers, expected) == {}


@pytest.mark.parametrize("depth", [1, 2], ids=["depth-1", "depth-2"])
def test_two_ranks_answer_the_same(expected: dict[Turn, list[int]], depth: int, tmp_path: Path) -> None:
    path = write_artifact(LONG, tmp_path / "two.tsa", ranks=2)
    few = replace(SCRIPT, openings=SCRIPT.openings[:6], said=SCRIPT.said[:6])
    options = options_of("thrashing", 64, depth, True)
    outcome = all_at_once(path, few, replace(options, num_pages=150), seed=4, aborts=True)
    assert differing(outcome.answers, {turn: answer for turn, answer in expected.items() if turn[0] < 6}) == {}
    assert outcome.preemptions > 0
