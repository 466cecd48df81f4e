"""Sessions follow from a seed, and have the lengths that the workload says."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from tsrun.bench.sessions import Plan, Scale, Session, without_tools
from tsrun.bench.traces import Trace, read_trace
from tsrun.bench.words import generator, text
from tsrun.bench.workload import Length, Workload, read_workload
from tsrun.errors import InputError

WORKLOAD: Workload = read_workload(None)[0]
SMALL = Scale(lengths=0.01, answers=0.2, turns=0.3, pace=0.0)


def plan(**changes: object) -> Plan:
    return Plan(**{"workload": WORKLOAD, "seed": 3, "scale": SMALL, "tokens_per_word": 1.25, "salt": "a", **changes})  # type: ignore[arg-type]


def test_a_seed_has_the_same_sessions_always() -> None:
    assert [plan().session(n) for n in range(20)] == [plan().session(n) for n in range(20)]
    assert plan().session(0) != plan(seed=4).session(0)


def test_a_session_does_not_depend_on_which_were_drawn_before() -> None:
    drawn = plan()
    assert [drawn.session(n) for n in (7, 2, 7)] == [plan().session(7), plan().session(2), plan().session(7)]


def shape(session: Session) -> list[tuple[int, float, int | None, int]]:
    return [(turn.answer_tokens, turn.seconds, turn.cancel_after, len(turn.fork)) for turn in session.turns]


def test_another_salt_has_sessions_of_the_same_shape_and_other_words() -> None:
    for number in range(10):
        one, other = plan().session(number), plan(salt="b").session(number)
        assert shape(one) == shape(other)
        assert one.system == other.system  # what a server has seen before
        own = [turn.say.split("\n\n")[-1] for turn in one.turns], [turn.say.split("\n\n")[-1] for turn in other.turns]
        assert not set(own[0]) & set(own[1])


def test_lengths_have_the_distribution_that_the_workload_says() -> None:
    whole = plan(scale=Scale(), tokens_per_word=1.0)
    sessions = [whole.session(number) for number in range(24)]
    turns = [turn for session in sessions for turn in session.turns[1:]]
    answers = median(turn.answer_tokens for turn in turns)
    assert 180 < answers < 260
    tools = [len(turn.say.split()) for turn in turns if turn.by_tool and not turn.fork]
    assert 740 < median(tools) < 1100
    assert 0.015 < sum(words > 8000 for words in tools) / len(tools) < 0.06
    assert 0.80 < sum(turn.by_tool for turn in turns) / len(turns) < 0.90
    assert 0.01 < sum(turn.cancel_after is not None for turn in turns) / len(turns) < 0.05
    forks = sum(any(turn.fork for turn in session.turns) for session in sessions) / len(sessions)
    assert 0.2 < forks < 0.55  # of the 40 % those that are not abandoned before
    assert len({session.system for session in sessions}) == len(WORKLOAD.harness.tokens)


@pytest.mark.parametrize("mean", [None, 2200.0])
def test_a_length_keeps_its_median_and_mean(mean: float | None) -> None:
    length = Length(median=900.0, mean=mean, sigma=None if mean else 0.5)
    drawn = [length.draw(generator("draw", n)) for n in range(4000)]
    assert abs(median(drawn) / 900 - 1) < 0.06
    if mean is not None:
        assert abs(sum(drawn) / len(drawn) / mean - 1) < 0.15


def test_scale_shrinks_what_is_read_and_turns_apart() -> None:
    large, small = plan(scale=Scale()).session(1), plan(scale=Scale(lengths=0.1)).session(1)
    assert len(large.turns) == len(small.turns)
    assert 8 < len(large.system) / len(small.system) < 12
    assert large.turns[1].answer_tokens == small.turns[1].answer_tokens
    assert plan(scale=Scale(lengths=0.05)).context == round(0.05 * WORKLOAD.context)


def test_tools_that_are_given_apart_are_not_in_the_system_message() -> None:
    session = plan().session(2)
    described = " ".join(str(tool["function"]["description"]) for tool in session.tools)  # type: ignore[index]
    assert f"{described} {without_tools(session, WORKLOAD.harness.tools_share)}".split() == session.system.split()


def test_text_has_as_many_words_as_asked_for() -> None:
    assert [len(text(words, "x").split()) for words in (1, 7, 8, 100, 5000)] == [1, 7, 8, 100, 5000]


MESSAGES = [
    {"role": "system", "content": "You mend code."},
    {"role": "user", "content": [{"type": "text", "text": "Mend it."}]},
    {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [{"id": "1", "function": {"name": "cat", "arguments": '{"path": "a"}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "print(1"},
    {"role": "assistant", "content": "A parenthesis is missing. " * 10},
]


def test_a_trace_is_replayed_turn_by_turn(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps({"messages": MESSAGES, "instance_id": "x"}) + "\n\n" + json.dumps(MESSAGES) + "\n")
    trace = Trace(plan(), read_trace(file))
    first, again = trace.session(0), trace.session(2)
    assert first.system == "You mend code."
    assert [turn.by_tool for turn in first.turns] == [False, True]
    assert first.turns[1].say == "print(1"
    assert first.turns[0].recorded == 'Let me look.\n{"name":"cat","arguments":"{\\"path\\": \\"a\\"}"}'
    assert first.turns[1].answer_tokens == 50  # 40 words of 1.25 tokens
    assert first.turns[0].say.startswith("Mend it.")
    assert first.turns[0].say != again.turns[0].say
    assert first.turns[1:] == tuple(turn for turn in again.turns[1:])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "trace.jsonl:1:"),
        ('{"messages": 3}', "trace.jsonl:1:"),
        ('[{"role": "user", "content": "Hi"}]', "no conversation with an answer"),
        ('{"other": ' + "[" * 100_000 + "]" * 100_000 + "}", "trace.jsonl:1:"),
        (None, "can not be read"),
    ],
)
def test_what_is_no_trace_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=says):
        read_trace(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("median = 30, sigma = 0.8", "median = 30"), "either `sigma` or `mean`"),
        (("context = 131072", "contexts = 131072"), "contexts"),
        (("sigma = 0.4 }", "sigma = 0.4"), "workload.toml"),
    ],
)
def test_what_is_no_workload_is_refused(change: tuple[str, str], says: str, tmp_path: Path) -> None:
    from importlib.resources import files

    text = (files("tsrun.bench") / "agentic.toml").read_text()
    assert change[0] in text
    file = tmp_path / "workload.toml"
    file.write_text(text.replace(*change))
    with pytest.raises(InputError, match=says):
        read_workload(file)
