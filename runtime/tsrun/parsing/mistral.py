"""Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]`, and since tokenizer version 11 `[TOOL_CALLS]f[ARGS]{…}`, once a call."""

from __future__ import annotations

from tsrun.parsing import writing
from tsrun.parsing.forms import Form, Json, Maybe, Pattern, Tag, one_of, series
from tsrun.parsing.grammar import Grammar, Tool, Tools, json_arguments, json_call, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait

_CALLS, _ARGUMENTS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
TAGS = (_CALLS, _ARGUMENTS, _ID)


def mistral(tools: Tools) -> Grammar:
    """`[ARGS]` may be missing, and a `[CALL_ID]` with an id may stand before it. A name that is no tool's makes a call too."""
    return tagged((_CALLS,), _calls)


def _calls(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
    yield from reader.space()
    if (yield from reader.literal("[")):
        while True:
            yield from reader.space()
            yield from json_call(reader, parts)
            yield from reader.space()
            if (yield from reader.expect(",", "]")) == "]":
                reader.claim()
                return
    name = yield from reader.name()
    id = (yield from reader.name()) if (yield from reader.literal(_ID)) else None
    yield from reader.literal(_ARGUMENTS)
    yield from json_arguments(reader, parts, name, id)


def _written(tools: Tools, single: bool) -> Form:
    """Which of the two a model was taught it knows itself."""

    def named(tool: Tool) -> Form:
        id = series(Tag(_ID), Pattern("[a-zA-Z0-9]{9}"))
        return series(writing.plain_name(tool.name), Maybe(id), Tag(_ARGUMENTS), Json(writing.schema_of(tool)))

    listed = series("[", writing.calls_of(tools, writing.json_call, ", ", single=single), "]")
    return one_of(listed, writing.calls_of(tools, named, "", single=True))


WRITING = writing.among_text(_CALLS, _written)
