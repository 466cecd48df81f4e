"""Kimi K2: `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`, in a section."""

from __future__ import annotations

import re

from tsrun.parsing.grammar import Grammar, Tools, json_arguments, section
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait

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
