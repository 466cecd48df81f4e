"""What is certain comes at once: text is withheld only while it may become a tag, and arguments stream."""

from __future__ import annotations

import pytest
from tests.parsing.corpus.case import TOOLS

from tsrun.parsing import TOOL_FORMATS, CallArguments, CallBegin, CallEnd, Content, Part, Reasoning, Tool, named


def fed(tools: str, *pieces: str, reasoning: str | None = None) -> list[list[Part]]:
    """What each piece gives, and the end."""
    parser = named(tools=tools, reasoning=reasoning).parser(TOOLS)
    return [*(parser.feed(piece) for piece in pieces), parser.finish()]


@pytest.mark.parametrize("tools", sorted(TOOL_FORMATS))
def test_text_comes_at_once(tools: str) -> None:
    assert fed(tools, "Hello", " you", " ", "two.") == [[Content("Hello")], [Content(" you")], [], [Content(" two.")], []]


@pytest.mark.parametrize("tools", sorted(set(TOOL_FORMATS) - {"gemma3"}))
def test_what_begins_a_tag_waits_until_it_is_none(tools: str) -> None:
    tag = TOOL_FORMATS[tools].tags[0]
    assert fed(tools, "a", tag[:-1], "~") == [[Content("a")], [], [Content(tag[:-1] + "~")], []]


def test_a_list_that_begins_with_no_tool_comes_at_once() -> None:
    assert fed("pythonic", "[see", "(", "page")[:3] == [[], [Content("[see(")], [Content("page")]]


def test_arguments_come_as_they_are_written() -> None:
    assert fed("hermes", '<tool_call>{"name": "now", ', '"arguments": ', '{"a"', ": [1", ", 2, ", '"x', 'y"', "]}", "}</tool_call>") == [
        [],
        [],
        [CallBegin(0, "now"), CallArguments(0, "{")],
        [CallArguments(0, '"a": [')],
        [CallArguments(0, "1, 2")],
        [CallArguments(0, ', "x')],
        [CallArguments(0, 'y"')],
        [CallArguments(0, "]}"), CallEnd(0)],
        [],
        [],
    ]


def test_a_string_of_a_tagged_parameter_comes_as_it_is_written() -> None:
    pieces = ("<tool_call>\n<function=write_file>\n<parameter=content>\n", "a\n", "b", "\n</parameter>", "\n</function>")
    assert fed("qwen3_coder", *pieces) == [
        [CallBegin(0, "write_file"), CallArguments(0, '{"content": "')],
        [CallArguments(0, "a")],
        [CallArguments(0, "\\nb")],
        [CallArguments(0, '"')],
        [CallArguments(0, "}"), CallEnd(0)],
        [],
    ]


def test_reasoning_comes_at_once() -> None:
    assert fed("hermes", "<think>", "\nLet", " me.\n", "</think>", "\n\nSo", reasoning="think") == [
        [],
        [Reasoning("Let")],
        [Reasoning(" me.")],
        [],
        [Content("So")],
        [],
    ]


def test_a_call_that_is_cut_is_closed_and_said_to_be() -> None:
    assert fed("mistral", '[TOOL_CALLS]now[ARGS]{"a": {"b": "c', "d") == [
        [CallBegin(0, "now"), CallArguments(0, '{"a": {"b": "c')],
        [CallArguments(0, "d")],
        [CallArguments(0, '"}}'), CallEnd(0, complete=False)],
    ]


def test_names_decide_only_where_a_format_leaves_it_open() -> None:
    text = '{"name": "fly", "parameters": {}}'
    for tools, is_call in ((TOOLS, False), ((*TOOLS, Tool("fly")), True), ((), False)):
        parser = named(tools="llama3_json").parser(tools)
        parts = [*parser.feed(text), *parser.finish()]
        assert any(isinstance(part, CallBegin) for part in parts) == is_call
