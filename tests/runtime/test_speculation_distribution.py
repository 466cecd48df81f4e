"""At a temperature drafts leave the distribution of tokens as it is: a chi-square test of 20,000 samples, which finds rules that do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.running import compiled
from tests.runtime.toy import Toy, write_artifact

from tsrun.branches import Branch, Grown
from tsrun.drafts import Drafts
from tsrun.engine import Engine
from tsrun.generation import GenerationRequest, StepLogits
from tsrun.limits import LimitOptions
from tsrun.output import Output
from tsrun.sampler import Draws, Sampling
from tsrun.step import NO_ROWS
from tsrun.tokenizer import Tokenizer

SAMPLES = 20_000
FEWEST = 5  # expected in a class
PICO = Path(__file__).parents[2] / "examples" / "pico" / "checkpoint"
Logits = NDArray[np.float32]
Rule = Callable[[Logits, Sequence[int], int], list[int]]


def surprise(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """How many standard deviations a chi-square statistic is above what is expected (Wilson and Hilferty). Tokens that are too rare are
    one class."""
    order = np.argsort(-shares)
    counts, expected = counts[order], shares[order] * counts.sum()
    common = int((expected >= FEWEST).sum())
    counts = np.append(counts[:common], counts[common:].sum())
    expected = np.append(expected[:common], expected[common:].sum())
    if expected[-1] < FEWEST:
        counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    freedom = len(counts) - 1
    statistic = float((((counts - expected) ** 2) / expected).sum())
    return (math.cbrt(statistic / freedom) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def softmax(logits_V: Logits) -> NDArray[np.float64]:
    weights = np.exp(logits_V.astype(np.float64) - logits_V.max())
    found: NDArray[np.float64] = weights / weights.sum()
    return found


def logits_of(artifact: Path, prompt: Sequence[int]) -> Logits:
    """[T, V]: what the model says follows each token of a prompt, as a prompt's continuation gives it."""
    seen: dict[int, Logits] = {}

    def look(step: StepLogits) -> None:
        for position, row in zip(step.positions.tolist(), step.logits, strict=True):
            seen[position] = row.copy()

    with Engine(artifact, LimitOptions(max_step_tokens=1, max_sequences=1), observer=look) as engine:
        engine.submit(GenerationRequest(prompt, 1))
        list(engine.events())
    return np.stack([seen[position] for position in range(len(prompt))])


def ours(logits_RV: Logits, drafts: Sequence[int], seed: int) -> list[int]:
    """The tokens that come of a sequence whose last rows these are, R - 1 of them of drafts."""
    rows = np.concatenate((logits_RV[-1:], logits_RV[:-1]))
    counts, tokens = np.array([len(drafts)], dtype=np.int32), np.array(drafts, dtype=np.int32)
    found = Drafts(counts, tokens, np.arange(len(drafts), dtype=np.int32))
    draws = Draws([Sampling(1.0, seed=seed).sampler()], np.array([len(drafts) + 7], dtype=np.int32), drafts=found)
    chosen = draws.choose(Output(rows.ctypes.data, "f32", rows.shape))
    return [token for _, token in found.came(chosen.tokens, 0)]


def ours_with_a_branch(logits_RV: Logits, drafts: Sequence[int], seed: int) -> list[int]:
    """The tokens that come of two drafts that stand beside each other, by the row before them and those of each."""
    before, *after = logits_RV
    rows = np.stack((after[0], after[1], before))  # of the first draft, of the branch, and of what both follow
    branch = Grown(Branch(0, drafts[1]), 0, 1, 0, NO_ROWS, NO_ROWS)
    found = Drafts(np.array([1, 0], dtype=np.int32), np.array(drafts[:1], dtype=np.int32), NO_ROWS, (branch,))
    sampler = Sampling(1.0, seed=seed).sampler()
    draws = Draws([sampler, None], np.array([8, 8], dtype=np.int32), drafts=found)
    chosen = draws.choose(Output(rows.ctypes.data, "f32", rows.shape))
    return [token for _, token in found.came(chosen.tokens, 0)]


def tries_the_second_as_if_it_were_the_first(logits_RV: Logits, drafts: Sequence[int], seed: int) -> list[int]:
    """Accepts it with the probability that it has, and not with the one that it has where the first did not come."""
    some, shares = np.random.default_rng(seed), softmax(logits_RV[0])
    for draft in drafts:
        if some.random() < shares[draft]:
            return [draft]
        shares[draft] = 0
    return [int(np.searchsorted(np.cumsum(shares), some.random() * shares.sum(), side="right"))]


def accepts_whatever_is_possible(logits_RV: Logits, drafts: Sequence[int], seed: int) -> list[int]:
    return [*drafts, *ours(logits_RV[-1:], [], seed)]


def forgets_the_rest(logits_RV: Logits, drafts: Sequence[int], seed: int) -> list[int]:
    """Accepts with the right probability, and then draws from all, and not from what is left."""
    came = ours(logits_RV, drafts, seed)
    if len(came) > len(drafts):
        return came
    return [*came[:-1], *ours(logits_RV[len(came) - 1 :][:1], [], seed + SAMPLES)]


def surprises(rule: Rule, logits_RV: Logits, drafts: Sequence[int]) -> list[float]:
    """Of the tokens at each place, where those before were as drafted."""
    counts = np.zeros(logits_RV.shape, dtype=np.int64)
    for seed in range(SAMPLES):
        for place, token in enumerate(rule(logits_RV, drafts, seed)):
            counts[place, token] += 1
    return [surprise(counts[row], softmax(logits_RV[row])) for row in range(len(logits_RV)) if counts[row].sum() > SAMPLES / 50]


PROMPTS: dict[str, Callable[[Path], list[int]]] = {
    "toy": lambda _: [256, 72, 101, 108, 108, 111],
    "pico": lambda artifact: Tokenizer(artifact / "tokenizer").encode("def read(self, path):\n    with open(path"),
}


@pytest.fixture(scope="module", params=PROMPTS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / f"{request.param}.tsa"
    if request.param == "toy":
        return write_artifact(Toy(), path)
    if not PICO.exists():
        pytest.skip(f"{PICO} is not there")
    return compiled(PICO, path)


@pytest.fixture(scope="module")
def rows(artifact: Path) -> tuple[Logits, list[int]]:
    """Logits after a prompt and two likely drafts, and these."""
    return rows_of(artifact, PROMPTS[artifact.stem](artifact))


def rows_of(artifact: Path, prompt: Sequence[int]) -> tuple[Logits, list[int]]:
    ids = list(prompt)
    for _ in range(2):
        ids.append(int(logits_of(artifact, ids)[-1].argmax()))
    return logits_of(artifact, ids)[-3:], ids[-2:]


def test_the_distribution_is_the_models(rows: tuple[Logits, list[int]]) -> None:
    found = surprises(ours, *rows)
    assert len(found) > 1  # a draft came often enough to say what follows it
    assert max(found) < 3.3  # 1 of 2,000 is more surprising


@pytest.mark.parametrize("rule", [accepts_whatever_is_possible, forgets_the_rest])
def test_wrong_rules_are_found(rows: tuple[Logits, list[int]], rule: Rule) -> None:
    assert max(surprises(rule, *rows)) > 10


@pytest.fixture(scope="module")
def beside(artifact: Path, rows: tuple[Logits, list[int]]) -> tuple[Logits, list[int]]:
    """Logits after a prompt, and after each of its two likeliest tokens, and these."""
    prompt = PROMPTS[artifact.stem](artifact)
    first, second = (int(token) for token in rows[0][0].argsort()[:-3:-1])
    return np.stack([rows[0][0], *(logits_of(artifact, [*prompt, token])[-1] for token in (first, second))]), [first, second]


def surprises_beside(rule: Rule, logits_RV: Logits, drafts: Sequence[int]) -> list[float]:
    """Of the first token, and of those that come after each of the drafts."""
    counts = np.zeros(logits_RV.shape, dtype=np.int64)
    for seed in range(SAMPLES):
        first, *after = rule(logits_RV, drafts, seed)
        counts[0, first] += 1
        for token in after:
            counts[1 + drafts.index(first), token] += 1
    return [surprise(counts[row], softmax(logits_RV[row])) for row in range(len(logits_RV)) if counts[row].sum() > SAMPLES / 50]


@pytest.mark.parametrize("artifact", ["pico"], indirect=True)
def test_a_branch_leaves_the_distribution_as_it_is(beside: tuple[Logits, list[int]]) -> None:
    found = surprises_beside(ours_with_a_branch, *beside)
    assert len(found) == 3  # both came often enough to say what follows them
    assert max(found) < 3.3


@pytest.mark.parametrize("artifact", ["toy"], indirect=True)
def test_a_wrong_rule_for_branches_is_found(beside: tuple[Logits, list[int]]) -> None:
    assert max(surprises_beside(tries_the_second_as_if_it_were_the_first, *beside)) > 10


def test_an_unlikely_draft_changes_nothing(rows: tuple[Logits, list[int]]) -> None:
    logits_RV, _ = rows
    unlikely = [int(logits_RV[0].argsort()[-8]), int(logits_RV[1].argmin())]
    assert max(surprises(ours, logits_RV, unlikely)) < 3.3
