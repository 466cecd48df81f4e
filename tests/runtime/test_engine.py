"""The engine against plain torch, and what must not change a request's tokens."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.runtime.numpy_sampler import choose
from tests.runtime.toy import EOS, Toy, write_artifact

from tsrun.engine import Engine
from tsrun.errors import RequestError
from tsrun.generation import GenerationRequest, StepLogits
from tsrun.limits import LimitOptions
from tsrun.sampler import Sampling

PROMPTS = [[256, 72, 101, 108, 108, 111], [256, 84], list(range(40, 75)), [256, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5], [9]]
SAMPLED = [Sampling(temperature=1.3, seed=i, top_p=0.95) for i in range(len(PROMPTS))]


def run(path: Path, requests: list[GenerationRequest], options: LimitOptions | None = None) -> tuple[list[list[int]], int]:
    """Tokens of each request, all submitted at once, and how often one was preempted."""
    with Engine(path, options) as engine:
        tokens: dict[int, list[int]] = {engine.submit(request): [] for request in requests}
        for event in engine.events():
            tokens[event.request].extend(event.token_ids)
        return list(tokens.values()), engine.num_preemptions


def requests_of(samplings: list[Sampling], count: int = 20) -> list[GenerationRequest]:
    return [GenerationRequest(p, max_tokens=count, sampling=s, ignore_eos=True) for p, s in zip(PROMPTS, samplings, strict=True)]


GREEDY = [Sampling()] * len(PROMPTS)


@pytest.fixture(scope="module")
def alone(toy_artifact: Path) -> dict[str, list[list[int]]]:
    """Each request by itself, in an engine that has room for everything."""
    return {
        name: [run(toy_artifact, [request])[0][0] for request in requests_of(samplings)]
        for name, samplings in (("greedy", GREEDY), ("sampled", SAMPLED))
    }


def test_logits_are_those_of_plain_torch(toy: Toy, toy_artifact: Path) -> None:
    seen: dict[int, dict[int, torch.Tensor]] = defaultdict(dict)

    def look(step: StepLogits) -> None:
        for request, position, row in zip(step.requests.tolist(), step.positions.tolist(), step.logits, strict=True):
            seen[request][position] = torch.from_numpy(row.copy())

    with Engine(toy_artifact, LimitOptions(max_step_tokens=16), observer=look) as engine:
        tokens: dict[int, list[int]] = {engine.submit(r): list(r.prompt) for r in requests_of(GREEDY)}
        for event in engine.events():
            tokens[event.request].extend(event.token_ids)
    for request, ids in tokens.items():
        expected = toy.logits(ids)
        assert max(seen[request]) == len(ids) - 2
        for position, row in seen[request].items():
            torch.testing.assert_close(row, expected[position], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_sampled_tokens_follow_from_the_logits_that_an_observer_sees(toy_artifact: Path, depth: int) -> None:
    samplings = [GREEDY[0], *SAMPLED[1:-1], Sampling(temperature=0.9, seed=8, top_k=5)]
    expected: dict[int, list[int]] = defaultdict(list)

    def look(step: StepLogits) -> None:
        for s in np.flatnonzero(step.samples):
            request, sampling = int(step.requests[s]), samplings[step.requests[s]]
            expected[request].append(choose(step.logits[s], sampling, sampling.seed or 0, int(step.positions[s]) + 1))

    tokens: dict[int, list[int]] = defaultdict(list)
    with Engine(toy_artifact, LimitOptions(max_step_tokens=16, depth=depth), observer=look) as engine:
        for request in requests_of(samplings):
            engine.submit(request)
        for event in engine.events():
            tokens[event.request].extend(event.token_ids)
    assert all(expected[request][:20] == made for request, made in tokens.items())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("depth", [1, 2])
def test_logits_that_are_no_numbers_end_their_request_alone(tmp_path: Path, sampling: Sampling, depth: int) -> None:
    broken = Toy()
    broken.weights["embed"][3] *= float("nan")
    with Engine(write_artifact(broken, tmp_path / "toy.tsa"), LimitOptions(depth=depth)) as engine:
        good = GenerationRequest([9, 9], 12, replace(sampling, seed=4), ignore_eos=True)
        expected = [engine.submit(good)] and [token for event in engine.events() for token in event.token_ids]
        for _ in range(2):
            bad, other = engine.submit(GenerationRequest([3, 9], sampling=sampling)), engine.submit(good)
            events = list(engine.events())
            (failed,) = [event for event in events if event.request == bad]
            assert (failed.finish_reason, failed.token_ids) == ("error", ())
            assert failed.error == "position 2: the model's largest logit is not finite; check the weights and the dtype"
            assert [token for event in events if event.request == other for token in event.token_ids] == expected
        assert engine.num_open == 0


def test_greedy_tokens_are_those_of_plain_torch(toy: Toy, alone: dict[str, list[list[int]]]) -> None:
    assert alone["greedy"] == [toy.greedy(prompt, 20) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
@pytest.mark.parametrize(
    "options",
    [
        LimitOptions(),
        LimitOptions(max_sequences=2),
        LimitOptions(max_step_tokens=3),
        LimitOptions(max_step_tokens=7, page_size=1),
        LimitOptions(page_size=64),
        LimitOptions(depth=1, max_step_tokens=7),
    ],
    ids=["batched", "two-at-a-time", "chunked", "pages-of-one", "large-pages", "one-step-at-a-time"],
)
def test_tokens_do_not_depend_on_the_batch(toy_artifact: Path, alone: dict[str, list[list[int]]], kind: str, options: LimitOptions) -> None:
    tokens, _ = run(toy_artifact, requests_of(GREEDY if kind == "greedy" else SAMPLED), options)
    assert tokens == alone[kind]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_preempted_requests_keep_their_tokens(toy_artifact: Path, alone: dict[str, list[list[int]]], kind: str, depth: int) -> None:
    options = LimitOptions(page_size=4, num_pages=16, max_step_tokens=16, depth=depth)
    tokens, preemptions = run(toy_artifact, requests_of(GREEDY if kind == "greedy" else SAMPLED), options)
    assert preemptions > 0
    assert tokens == alone[kind]


def test_requests_may_join_while_others_run(toy_artifact: Path, alone: dict[str, list[list[int]]]) -> None:
    requests = requests_of(GREEDY)
    tokens: dict[int, list[int]] = {}
    with Engine(toy_artifact) as engine:
        for request in requests:
            tokens[engine.submit(request)] = []
            for event in engine.step() + engine.step():
                tokens[event.request].extend(event.token_ids)
        for event in engine.events():
            tokens[event.request].extend(event.token_ids)
    assert list(tokens.values()) == alone["greedy"]


def test_seeds_make_different_requests(toy_artifact: Path) -> None:
    requests = [GenerationRequest([9], max_tokens=12, sampling=Sampling(temperature=2.0, seed=s), ignore_eos=True) for s in range(4)]
    tokens, _ = run(toy_artifact, requests)
    assert len({tuple(t) for t in tokens}) == 4


@pytest.mark.parametrize("depth", [1, 2])
def test_an_aborted_request_ends_with_that_reason_and_frees_its_pages(toy_artifact: Path, depth: int) -> None:
    with Engine(toy_artifact, LimitOptions(depth=depth)) as engine:
        first, second = engine.submit(GenerationRequest([9], ignore_eos=True)), engine.submit(GenerationRequest([9, 9], max_tokens=3))
        engine.step()
        engine.abort(first)
        engine.abort(first)
        events = list(engine.events())
        assert [(e.request, e.finish_reason) for e in events if e.finish_reason] == [(first, "abort"), (second, "length")]
        assert engine.num_open == 0
        assert engine.step() == []


def test_a_request_ends_at_the_context(toy: Toy, toy_artifact: Path) -> None:
    tokens, _ = run(toy_artifact, [GenerationRequest(PROMPTS[0], max_tokens=10_000, ignore_eos=True)])
    assert len(tokens[0]) == toy.context - len(PROMPTS[0])


def test_a_sequence_outgrows_the_pages_of_its_window(toy: Toy, toy_artifact: Path) -> None:
    options = LimitOptions(page_size=1, num_pages=96, max_sequences=1, max_step_tokens=4)
    with Engine(toy_artifact, options) as engine:
        assert engine.limits.windows == ((12, 44),)
        engine.submit(GenerationRequest(PROMPTS[2], ignore_eos=True))
        tokens = [token for event in engine.events() for token in event.token_ids]
    assert len(tokens) == toy.context - len(PROMPTS[2])
    assert tokens == toy.greedy(PROMPTS[2], len(tokens))


def test_text_comes_in_pieces_that_join_to_the_decoded_tokens(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        assert engine.tokenizer is not None
        engine.submit(GenerationRequest(PROMPTS[0], max_tokens=60, sampling=Sampling(temperature=1.0, seed=1), ignore_eos=True))
        events = list(engine.events())
        ids = [token for event in events for token in event.token_ids]
        assert "".join(event.text for event in events) == engine.tokenizer.decode(ids)


def test_a_stop_string_ends_a_request_and_is_not_shown(toy_artifact: Path) -> None:
    request = GenerationRequest(PROMPTS[0], max_tokens=40, sampling=Sampling(temperature=1.0, seed=3), ignore_eos=True)
    with Engine(toy_artifact) as engine:
        engine.submit(request)
        text = "".join(event.text for event in engine.events())
        stop = text[10:13]
        engine.submit(GenerationRequest(request.prompt, 40, request.sampling, (stop,), ignore_eos=True))
        events = list(engine.events())
    assert "".join(event.text for event in events) == text[: text.index(stop)]
    assert (events[-1].finish_reason, events[-1].stopped_by) == ("stop", stop)


def test_eos_ends_a_request_unless_it_is_ignored(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        seed = next(s for s in range(500) if EOS in _tokens(engine, s)[:-1])
        ignored = _tokens(engine, seed)
        engine.submit(GenerationRequest([9], max_tokens=8, sampling=_hot(seed)))
        events = list(engine.events())
    assert len(ignored) == 8
    assert [token for event in events for token in event.token_ids] == ignored[: ignored.index(EOS) + 1]
    assert (events[-1].finish_reason, events[-1].stopped_by) == ("stop", EOS)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_token_ends_a_request_and_has_no_text(toy: Toy, toy_artifact: Path, ignore_eos: bool) -> None:
    tokens = toy.greedy(PROMPTS[0], 20)
    stop = next(token for token in tokens[3:] if token < 128)
    expected = tokens[: tokens.index(stop) + 1]
    with Engine(toy_artifact) as engine:
        engine.submit(GenerationRequest(PROMPTS[0], 20, stop_token_ids=(300, stop), ignore_eos=ignore_eos))
        events = list(engine.events())
        assert engine.tokenizer is not None
        assert "".join(event.text for event in events) == engine.tokenizer.decode(expected[:-1])
    assert [token for event in events for token in event.token_ids] == expected
    assert (events[-1].finish_reason, events[-1].stopped_by) == ("stop", stop)


def _hot(seed: int) -> Sampling:
    return Sampling(temperature=50.0, seed=seed)


def _tokens(engine: Engine, seed: int) -> list[int]:
    engine.submit(GenerationRequest([9], max_tokens=8, sampling=_hot(seed), ignore_eos=True))
    return [token for event in engine.events() for token in event.token_ids]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (GenerationRequest([]), "the prompt is empty"),
        (GenerationRequest([260]), "token 260 is outside of the vocabulary of 260"),
        (GenerationRequest([-1]), "token -1 is outside"),
        (GenerationRequest([1] * 96), "the prompt has 96 tokens, the longest context is 96; shorten it"),
        (GenerationRequest([1], max_tokens=0), "max-tokens: got 0"),
        (GenerationRequest([1], stop=("",)), "an empty stop string"),
    ],
)
def test_a_request_that_can_not_run_is_refused_in_one_line(toy_artifact: Path, request_: GenerationRequest, said: str) -> None:
    with Engine(toy_artifact) as engine:
        with pytest.raises(RequestError, match=said) as refusal:
            engine.submit(request_)
        assert "\n" not in refusal.value.line
        assert engine.num_open == 0


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**63, 10**400])
def test_a_top_k_of_any_size_is_that_of_all(toy_artifact: Path, top_k: int) -> None:
    def tokens(top_k: int) -> list[int]:
        with Engine(toy_artifact) as engine:
            engine.submit(GenerationRequest([1, 2, 3], 4, Sampling(temperature=0.8, seed=3, top_k=top_k), ignore_eos=True))
            return [token for event in engine.events() for token in event.token_ids]

    assert tokens(top_k) == tokens(0)


def test_an_engine_of_compiled_kernels_does_without_torch(toy_artifact: Path) -> None:
    """Whose import takes longer than all else that a start does."""
    pytest.importorskip("tskernels._cpu")
    program = (
        "import sys, pathlib; from tsrun.engine import Engine; Engine(pathlib.Path(sys.argv[1])).close(); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program, str(toy_artifact)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
