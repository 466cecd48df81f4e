"""Text that no model should write: it never raises an error, is cut as one likes, is kept, and takes linear time and bounded depth."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.parsing.corpus.all import CASES
from tests.parsing.corpus.case import TOOLS, Call, Case, meaning
from tests.parsing.test_corpus import joined, parse

from tsrun.parsing import REASONING_FORMATS, TOOL_FORMATS, CallArguments, CallBegin, Choice, Content, named

OF_TOOLS = [named(tools=name) for name in sorted(TOOL_FORMATS)]
CHOICES = [*OF_TOOLS, *(Choice(reasoning, "hermes") for reasoning in sorted(REASONING_FORMATS))]
FRAGMENTS = (
    *("{", "}", "[", "]", "(", ")", '"', "'", ":", ",", ";", "=", "\\", "\n", " ", "<", "</", "<|", "```", '"""', "é", "\ud7ff"),
    *(
        "name",
        '"name": ',
        '"now"',
        "now",
        '"arguments": ',
        '"parameters": ',
        "call:",
        "call:now{",
        "now(",
        "[now(",
        "city=",
        "-",
        "1",
        "12.5e3",
        "tr",
    ),
    *(
        '{"name": "now", "arguments": ',
        '{"name": "now"}',
        "functions.now:0",
        "to=functions.now",
        "```json",
        "<function=now>",
        "<parameter=city>",
    ),
    *("</parameter>", "</function>", "```tool_code\n", "null", "\\u00", "\x00", "\u2028"),
)


def tags(choice: Choice) -> tuple[str, ...]:
    return (*choice.tags, "<|python_start|>", "<tool_call>", "<function=", "```tool_code")


def garbage(choice: Choice) -> st.SearchStrategy[list[str]]:
    """Pieces that a parser of this kind takes for something."""
    return st.lists(st.one_of(st.sampled_from(tags(choice)), st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=14)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.reasoning}-{choice.tools}")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_garbage_raises_nothing_and_means_the_same_however_it_is_cut(choice: Choice, data: st.DataObject) -> None:
    pieces = data.draw(garbage(choice))
    text = "".join(pieces)
    inside = data.draw(st.booleans())
    whole = parse(choice, [text], starts_inside=inside)
    meaning(whole)  # indices are in order, and arguments are JSON
    for cut in (pieces, list(text)):
        assert joined(parse(choice, cut, starts_inside=inside)) == joined(whole)


@pytest.mark.parametrize("choice", [c for c in OF_TOOLS if c.tools != "harmony"], ids=lambda choice: str(choice.tools))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_text_without_calls_is_kept(choice: Choice, data: st.DataObject) -> None:
    text = "".join(data.draw(garbage(choice)))
    parts = parse(choice, list(text))
    if not any(isinstance(part, CallBegin) for part in parts):
        assert "".join(part.text for part in parts if isinstance(part, Content)) == text


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_a_damaged_text_raises_nothing(case: Case, data: st.DataObject) -> None:
    text = case.text
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    text = text[:start] + data.draw(st.sampled_from(("", text[start:end] * 2, "<", '"', "\\", "}"))) + text[end:]
    whole = parse(case.choice, [text], starts_inside=case.starts_inside)
    meaning(whole)
    assert joined(parse(case.choice, list(text), starts_inside=case.starts_inside)) == joined(whole)


def hostile(choice: Choice) -> list[Callable[[int], str]]:
    """Texts of about n pieces that naive parsers are slow, or go deep, on."""
    begin = {
        "deepseek": "<｜tool▁call▁begin｜>now<｜tool▁sep｜>",
        "functiongemma": "<start_function_call>call:now{a:",
        "gemma3": "```tool_code\n[now(a=",
        "gemma4": "<|tool_call>call:now{a:",
        "glm": "<tool_call>now<arg_key>a</arg_key><arg_value>",
        "harmony": "<|channel|>commentary to=now<|message|>",
        "hermes": '<tool_call>{"name": "now", "arguments": ',
        "kimi_k2": "<|tool_call_begin|>now<|tool_call_argument_begin|>",
        "llama3_json": '{"name": "now", "parameters": ',
        "mistral": "[TOOL_CALLS]now[ARGS]",
        "pythonic": "[now(a=",
        "qwen3_coder": "<function=now><parameter=a>",
    }[str(choice.tools)]
    units = ("[", '{"a":', "{a:", "(", "a", "1", " \n", "-", "\\", '"', "'a'", "1,", "now(),", "<", "a=", "a.")
    texts: list[Callable[[int], str]] = [lambda n, u=unit: begin + u * n for unit in units]  # type: ignore[misc]
    for tag in choice.tags[:3]:
        texts += [lambda n, t=tag: t * (n // 10), lambda n, t=tag: t[:-1] * (n // 10)]  # type: ignore[misc]
    texts += [lambda n: begin * (n // 10), lambda n: begin + '{"a": "' + "x" * n, lambda n: begin + '{"a": [' + "[]," * n]
    return texts


def lines_run(choice: Choice, pieces: list[str]) -> int:
    """How many lines the parser runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(choice, pieces)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("choice", OF_TOOLS, ids=lambda choice: str(choice.tools))
def test_work_grows_with_the_text_and_no_faster(choice: Choice) -> None:
    """Past what limits cut short: of quadratic work there would be four times as much."""
    for text in hostile(choice):
        once, twice = (lines_run(choice, in_pieces(text(n))) for n in (1500, 3000))
        assert twice <= 3 * once, text(10)


def in_pieces(text: str) -> list[str]:
    return [text[at : at + 16] for at in range(0, len(text), 16)]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.reasoning}-{choice.tools}")
def test_what_is_unread_while_a_parser_waits_is_short(choice: Choice) -> None:
    """Each piece of text is joined to what is unread: were that long, the copies would take quadratic time."""
    for text in [*(make(200) for make in hostile(choice)), "".join(random.Random(0).choices(FRAGMENTS, k=500))]:
        parser = choice.parser(TOOLS)
        for character in text:
            parser.feed(character)
            assert len(parser._reader.text) - parser._reader.at < 32


@pytest.mark.parametrize("choice", OF_TOOLS, ids=lambda choice: str(choice.tools))
def test_depth_and_size_raise_nothing(choice: Choice) -> None:
    for make in hostile(choice):
        meaning(parse(choice, [make(5_000)]))


@pytest.mark.parametrize("depth", [64, 65])
def test_arguments_nest_to_a_depth_of_64(depth: int) -> None:
    nested = "[" * (depth - 1) + "]" * (depth - 1)
    texts = {
        "hermes": f'<tool_call>{{"name": "now", "arguments": {{"a": {nested}}}}}</tool_call>',
        "functiongemma": f"<start_function_call>call:now{{a:{nested}}}<end_function_call>",
        "pythonic": f"<|python_start|>[now(a={nested[1:-1]})]",  # whose own brackets count
    }
    for tools, text in texts.items():
        calls = [item for item in meaning(parse(named(tools=tools), [text])) if isinstance(item, Call) and item.complete]
        assert len(calls) == (depth == 64), tools


def test_a_long_string_streams() -> None:
    """Of a string in arguments nothing is withheld but what may be an escape."""
    parser = named(tools="hermes").parser(TOOLS)
    given = "".join(p.text for p in parser.feed('<tool_call>{"name": "now", "arguments": {"a": "') if isinstance(p, CallArguments))
    for character in "ab\\n<c":
        given += "".join(p.text for p in parser.feed(character) if isinstance(p, CallArguments))
        assert given.startswith('{"a": "')
    assert given == '{"a": "ab\\n<c'
    assert json.loads(given + '"}') == {"a": "ab\n<c"}
