"""Kimi K2: `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`, in a section."""

from __future__ import annotations

import re

from tsrun.parsing.forms import Form, Json, Pattern, Tag, series
from tsrun.parsing.grammar import Grammar, Tool, Tools, json_arguments, section
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.writing import among_text, calls_of, plain_name, schema_of

_SECTION, _END_SECTION = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _END_CALL = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
TAGS = (_SECTION, _END_SECTION, _CALL, _ARGUMENTS, _END_CALL)
_NUMBER = re.compile(r":[0-9]+$")


def kimi(tools: Tools) -> Grammar:
    """The call's id is as the model wrote it, `functions.f:0`. A name that is no tool's makes a call too."""
    return section(_SECTION, _CALL, _END_SECTION, _call)


def _call(reader: Reader, parts: Parts) -> Wait[None]:
    yield from reader.space()
    id = yield from reader.name()
    yield from reader.space()
    yield from reader.expect(_ARGUMENTS)
    name = _NUMBER.sub("", id.removeprefix("functions."))
    yield from json_arguments(reader, parts, name or id, id, _END_CALL)


def _written(tools: Tools, single: bool) -> Form:
    def call(tool: Tool) -> Form:
        name = series(f"functions.{plain_name(tool.name)}", Pattern(":[0-9]{1,4}"))
        return series(Tag(_CALL), name, Tag(_ARGUMENTS), Json(schema_of(tool)), Tag(_END_CALL))

    return series(calls_of(tools, call, "", single=single), Tag(_END_SECTION))


WRITING = among_text(_SECTION, _written, _CALL)
