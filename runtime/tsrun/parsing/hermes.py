"""Hermes and Qwen 2.5 / 3: a call is `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`."""

from __future__ import annotations

from tsrun.parsing import writing
from tsrun.parsing.forms import Form, Tag, series
from tsrun.parsing.grammar import Grammar, Tools, json_call, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait

OPEN, CLOSE = "<tool_call>", "</tool_call>"
TAGS = (OPEN, CLOSE)


def hermes(tools: Tools) -> Grammar:
    """The closing tag may be missing. A name that is no tool's makes a call too."""
    return tagged((OPEN,), _call)


def _call(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
    yield from reader.space()
    yield from json_call(reader, parts)
    yield from reader.space()
    if (yield from reader.literal(CLOSE)):
        reader.claim()


def _written(tools: Tools, single: bool) -> Form:
    return series("\n", writing.calls_of(tools, writing.json_call, "", single=True), "\n", Tag(CLOSE))


WRITING = writing.among_text(OPEN, _written)
