"""What a request may ask for beside tokens: a deadline, a turn, a part of the prefix cache. And how an engine ends in the middle of one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.toy import Toy, write_artifact

from tsrun.artifact import open_artifact
from tsrun.engine import Engine
from tsrun.errors import MachineError, RequestError
from tsrun.executor import Executor
from tsrun.generation import Event, GenerationRequest
from tsrun.limits import LimitOptions
from tsrun.output import Output
from tsrun.sampler import Draws
from tsrun.step import Step

PROMPT = list(range(40, 75))
both_depths = pytest.mark.parametrize("depth", [1, 2])


def last_events(events: Iterator[Event]) -> dict[int, Event]:
    return {event.request: event for event in events if event.finish_reason is not None}


@both_depths
def test_a_request_ends_at_its_deadline_with_what_it_has(toy: Toy, toy_artifact: Path, depth: int) -> None:
    with Engine(toy_artifact, LimitOptions(depth=depth)) as engine:
        engine.submit(GenerationRequest(PROMPT, ignore_eos=True, deadline_seconds=0.5))
        other = engine.submit(GenerationRequest([9], 8, ignore_eos=True, deadline_seconds=600))
        events = engine.step() + engine.step()
        time.sleep(0.6)
        events += engine.events()
    assert {e.request: e.finish_reason for e in events if e.finish_reason} == {other - 1: "deadline", other: "length"}
    tokens = [token for event in events if event.request == other - 1 for token in event.token_ids]
    assert 1 <= len(tokens) < 8
    assert tokens == toy.greedy(PROMPT, len(tokens))


def test_a_request_that_waits_past_its_deadline_ends_without_a_token(toy_artifact: Path) -> None:
    with Engine(toy_artifact) as engine:
        number = engine.submit(GenerationRequest(PROMPT, deadline_seconds=1e-6))
        time.sleep(0.01)
        assert list(engine.events()) == [Event(number, (), "", "deadline")]


@both_depths
def test_a_prompt_that_was_here_before_is_found(toy_artifact: Path, depth: int) -> None:
    with Engine(toy_artifact, LimitOptions(page_size=4, depth=depth)) as engine:
        first = engine.submit(GenerationRequest(PROMPT, 3, ignore_eos=True))
        assert last_events(engine.events())[first].cached_tokens == 0
        again = engine.submit(GenerationRequest([*PROMPT[:22], 1, 2], 1, ignore_eos=True))
        whole = engine.submit(GenerationRequest(PROMPT, 5, ignore_eos=True))
        events = engine.step()
        assert engine.cached_tokens(whole) == 32
        events += engine.events()
    ends = last_events(iter(events))
    assert ends[again].cached_tokens == 20  # whole pages
    assert ends[whole].cached_tokens == 32  # of a whole prompt all but what the first token follows from


def test_requests_of_another_salt_share_nothing(toy_artifact: Path) -> None:
    with Engine(toy_artifact, LimitOptions(page_size=4)) as engine:

        def cached(salt: str | None) -> int:
            number = engine.submit(GenerationRequest(PROMPT, 1, cache_salt=salt))
            return last_events(engine.events())[number].cached_tokens

        assert [cached(salt) for salt in (None, "a", "b", "a", None, "")] == [0, 0, 0, 32, 32, 0]


def test_without_a_prefix_cache_nothing_is_found(toy_artifact: Path) -> None:
    with Engine(toy_artifact, LimitOptions(page_size=4, prefix_cache=False)) as engine:
        for _ in range(2):
            engine.submit(GenerationRequest(PROMPT, 1))
            assert [event.cached_tokens for event in engine.events()] == [0]


def test_a_request_of_a_higher_class_goes_first(toy_artifact: Path) -> None:
    with Engine(toy_artifact, LimitOptions(max_sequences=1)) as engine:
        numbers = [engine.submit(GenerationRequest([9], 2, ignore_eos=True, priority=p, user=p)) for p in (7, 3, 0)]
        assert list(last_events(engine.events())) == numbers[::-1]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (GenerationRequest([1], priority=8), "priority must be from 0 to 7, got 8"),
        (GenerationRequest([1], deadline_seconds=0), "deadline-seconds: got 0"),
        (GenerationRequest([1], deadline_seconds=float("nan")), "deadline-seconds: got nan"),
    ],
)
def test_what_no_scheduler_takes_is_refused(toy_artifact: Path, request_: GenerationRequest, said: str) -> None:
    with Engine(toy_artifact) as engine:
        with pytest.raises(RequestError, match=said):
            engine.submit(request_)
        assert engine.num_open == 0


def test_a_depth_of_three_is_refused() -> None:
    with pytest.raises(RequestError, match="depth: got 3; give 1 or 2"):
        LimitOptions(depth=3)


def test_artifacts_of_other_weights_have_another_part_of_the_cache(toy_artifact: Path, tmp_path: Path) -> None:
    other = Toy()
    other.weights["head"] = other.weights["head"] + 1
    assert open_artifact(toy_artifact).namespace != open_artifact(write_artifact(other, tmp_path / "other.tsa")).namespace
    assert open_artifact(toy_artifact).namespace == open_artifact(write_artifact(Toy(), tmp_path / "same.tsa")).namespace


def no_step_runs() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("tsrun-step")]


def test_the_thread_of_the_steps_ends_with_the_engine(toy_artifact: Path) -> None:
    engine = Engine(toy_artifact, LimitOptions(depth=2))
    engine.submit(GenerationRequest(PROMPT))
    engine.step()
    assert not no_step_runs()
    engine.close()
    assert no_step_runs()
    engine.close()


@both_depths
def test_an_error_of_a_step_comes_out_of_it(toy_artifact: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(toy_artifact, LimitOptions(depth=depth)) as engine:
        engine.submit(GenerationRequest(PROMPT, ignore_eos=True))
        engine.step()

        def fail(self: Executor, step: Step, draws: Draws | None) -> Output:
            raise MemoryError("of the step")

        monkeypatch.setattr(Executor, "run", fail)
        with pytest.raises(MemoryError, match="of the step"):
            list(engine.events())
        with pytest.raises(MachineError, match="a step has failed before"):
            engine.step()
    assert no_step_runs()


@both_depths
def test_an_interrupt_comes_out_of_the_step(toy_artifact: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(toy_artifact, LimitOptions(depth=depth)) as engine:
        engine.submit(GenerationRequest(PROMPT, ignore_eos=True))
        engine.step()
        run = Executor.run

        def slowly(self: Executor, step: Step, draws: Draws | None) -> Output:
            time.sleep(0.5)
            return run(self, step, draws)

        monkeypatch.setattr(Executor, "run", slowly)
        threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            list(engine.events())
    assert no_step_runs()


@both_depths
def test_a_closed_engine_says_so(toy_artifact: Path, depth: int) -> None:
    engine = Engine(toy_artifact, LimitOptions(depth=depth))
    engine.submit(GenerationRequest([1, 2], 5))
    engine.step()
    engine.close()
    with pytest.raises(MachineError, match="it was closed"):
        engine.step()
    with pytest.raises(MachineError, match="it was closed"):
        engine.submit(GenerationRequest([1, 2], 5))


def test_a_step_too_large_to_allocate_is_refused() -> None:
    with pytest.raises(RequestError, match=r"max-sequences: .*give at most 1,048,576"):
        LimitOptions(max_sequences=2**31)
    with pytest.raises(RequestError, match=r"max-step-tokens: .*give at most 1,048,576"):
        LimitOptions(max_step_tokens=2**31)
