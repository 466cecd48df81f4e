"""Embeddings of the engine against plain torch, whatever shares their steps. That no bit of them changes is in tests/models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.runtime.toy import Toy, write_artifact

from tsrun.cli import run
from tsrun.embedding import unit
from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import EmbeddingRequest, Event, GenerationRequest
from tsrun.limits import LimitOptions

PROMPTS = [[256, 72, 101, 108, 108, 111], [256, 84], list(range(40, 75)), [9], list(range(40, 70)), [256, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]]
ALONE = LimitOptions(max_sequences=1, prefix_cache=False, depth=1)


@pytest.fixture(scope="module")
def embedding_toy() -> Toy:
    return Toy(embeds=True)


@pytest.fixture(scope="module")
def artifact(embedding_toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(embedding_toy, tmp_path_factory.mktemp("embeds") / "toy.tsa")


def ended(engine: Engine, requests: list[EmbeddingRequest]) -> list[Event]:
    """The one event of each, all submitted at once."""
    numbers = [engine.submit(request) for request in requests]
    events = list(engine.events())
    assert sorted(event.request for event in events) == numbers
    return sorted(events, key=lambda event: event.request)


def embed(path: Path, prompts: list[list[int]], options: LimitOptions | None = None) -> list[bytes | None]:
    with Engine(path, options) as engine:
        events = ended(engine, [EmbeddingRequest(prompt) for prompt in prompts])
    assert all((event.finish_reason, event.token_ids, event.text) == ("stop", (), "") for event in events)
    return [event.embedding for event in events]


@pytest.fixture(scope="module")
def alone(artifact: Path) -> list[bytes]:
    return [embed(artifact, [prompt], ALONE)[0] or b"" for prompt in PROMPTS]


def vector(data: bytes | None) -> NDArray[np.float32]:
    assert data is not None
    return np.frombuffer(data, dtype="<f4")


def assert_near(found: list[bytes | None], expected: list[bytes]) -> None:
    """The toy's products are torch's, which round otherwise in steps of other sizes."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(vector(one), vector(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_embedding_is_the_last_row_of_plain_torch_at_length_1(embedding_toy: Toy, ranks: int, tmp_path: Path) -> None:
    path = write_artifact(embedding_toy, tmp_path / "toy.tsa", ranks=ranks)
    for prompt, found in zip(PROMPTS, embed(path, PROMPTS), strict=True):
        expected = torch.nn.functional.normalize(embedding_toy.hidden(prompt)[-1], dim=0)
        torch.testing.assert_close(torch.from_numpy(vector(found).copy()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        LimitOptions(),
        LimitOptions(max_sequences=2),
        LimitOptions(max_step_tokens=3),
        LimitOptions(max_step_tokens=7, page_size=1),
        LimitOptions(depth=1, max_step_tokens=7),
        LimitOptions(prefix_cache=False),
    ],
    ids=["batched", "two-at-a-time", "chunked", "pages-of-one", "one-step-at-a-time", "uncached"],
)
def test_company_and_chunks_change_nothing(artifact: Path, alone: list[bytes], options: LimitOptions) -> None:
    assert_near(embed(artifact, PROMPTS, options), alone)
    assert_near(embed(artifact, PROMPTS[::-1], options), alone[::-1])


def test_a_prompt_is_found_in_the_prefix_cache_by_who_has_its_salt(artifact: Path, alone: list[bytes]) -> None:
    with Engine(artifact, LimitOptions(page_size=4)) as engine:
        for cached in (0, 32):
            event = ended(engine, [EmbeddingRequest(PROMPTS[2])])[0]
            assert event.cached_tokens == cached
            assert_near([event.embedding], [alone[2]])
        other = ended(engine, [EmbeddingRequest(PROMPTS[2], cache_salt="other")])[0]
        assert other.cached_tokens == 0
        assert_near([other.embedding], [alone[2]])


def test_a_prompt_may_be_as_long_as_the_context(embedding_toy: Toy, artifact: Path) -> None:
    longest = [n % 256 for n in range(embedding_toy.context)]
    expected = unit(embedding_toy.hidden(longest)[-1].numpy())
    np.testing.assert_allclose(vector(embed(artifact, [longest])[0]), expected, atol=1e-5)
    with (
        Engine(artifact) as engine,
        pytest.raises(RequestError, match=f"has {embedding_toy.context + 1} tokens, the longest context is {embedding_toy.context}"),
    ):
        engine.submit(EmbeddingRequest([*longest, 1]))


def test_what_is_not_finite_ends_its_request_alone(tmp_path: Path) -> None:
    broken = Toy(embeds=True)
    broken.weights["embed"][3] *= float("nan")
    with Engine(write_artifact(broken, tmp_path / "toy.tsa")) as engine:
        bad, good = ended(engine, [EmbeddingRequest([3, 9]), EmbeddingRequest([9, 9])])
    assert (bad.finish_reason, bad.embedding) == ("error", None)
    assert bad.error == "position 2: the model's embedding is not finite; check the weights and the dtype"
    assert (good.finish_reason, good.error) == ("stop", None)


def test_an_abort_and_a_deadline_end_a_request_without_an_embedding(artifact: Path) -> None:
    with Engine(artifact, LimitOptions(max_step_tokens=8)) as engine:
        aborted = engine.submit(EmbeddingRequest(PROMPTS[2]))
        late = engine.submit(EmbeddingRequest(PROMPTS[2], deadline_seconds=1e-9))
        first = engine.submit(EmbeddingRequest(PROMPTS[4]))
        engine.abort(aborted)
        events = {event.request: event for event in engine.events()}
        assert [events[n].finish_reason for n in (aborted, late, first)] == ["abort", "deadline", "stop"]
        assert [events[n].embedding is None for n in (aborted, late, first)] == [True, True, False]
        load = engine.load()
        assert load.running == load.waiting == 0


def test_a_model_gives_tokens_or_embeddings(artifact: Path, toy_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Engine(artifact) as engine, pytest.raises(RequestError, match=r"gives embeddings, and no tokens; .*--entry decode"):
        engine.submit(GenerationRequest([1, 2]))
    with Engine(toy_artifact) as engine, pytest.raises(RequestError, match=r"gives tokens, and no embeddings; .*--entry embed"):
        engine.submit(EmbeddingRequest([1, 2]))
    with pytest.raises(RequestError, match="gives embeddings, and there are no logits to observe"):
        Engine(artifact, observer=lambda step: None)
    assert run(["generate", str(artifact), "-p", "x"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"tsrun: {artifact}: the model gives embeddings, and no tokens; compile its checkpoint for generation")
    assert said.count("\n") == 1


@pytest.mark.parametrize("changes", [{"prompt": []}, {"prompt": [260]}, {"deadline_seconds": 0.0}, {"priority": 9}], ids=str)
def test_what_can_never_run_is_refused(artifact: Path, changes: dict[str, object]) -> None:
    with Engine(artifact) as engine, pytest.raises(RequestError):
        engine.submit(replace(EmbeddingRequest([1]), **changes))  # type: ignore[arg-type]


def test_a_vector_of_zeros_stays_one() -> None:
    assert unit(np.zeros(4, dtype=np.float32)).tolist() == [0, 0, 0, 0]
    assert unit(np.array([3e38, 4e38 / 2], dtype=np.float32)).tolist() == pytest.approx([0.8320503, 0.5547002])
