"""Qwen3-Coder: `<tool_call><function=f><parameter=x>\nvalue\n</parameter></function></tool_call>`."""

from __future__ import annotations

from tsrun.parsing.forms import Form, Tag, series
from tsrun.parsing.grammar import Grammar, Tool, Tools, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.typed import ArgumentWriter, TypedArguments
from tsrun.parsing.typed_writing import arguments
from tsrun.parsing.writing import among_text, calls_of, plain_name

_CALL, _END_CALL = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
TAGS = (_CALL, _END_CALL)


def qwen3_coder(tools: Tools) -> Grammar:
    """`<tool_call>` may be missing, as the models leave it out now and then, and so may what closes it. A value ends at the first
    `</parameter>`. It is a call when a parameter has begun, or the function ended. A name that is no tool's makes a call too."""
    typed = TypedArguments(tools)

    def call(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
        if tag == _CALL:
            yield from reader.space()
            yield from reader.expect(_FUNCTION)
        name = yield from reader.name()
        yield from reader.expect(">")
        writer: ArgumentWriter | None = None
        while True:
            yield from reader.space()
            if (yield from reader.expect(_PARAMETER, _END_FUNCTION, _END_CALL)) != _PARAMETER:
                break
            parameter = yield from reader.name()
            yield from reader.expect(">")
            writer = writer or ArgumentWriter(parts, name)
            writer.key(parameter)
            if not (yield from typed.read(reader, writer, typed.types(name, parameter), _END_PARAMETER, line=True)):
                return
        (writer or ArgumentWriter(parts, name)).close()
        yield from reader.space()
        if (yield from reader.literal(_END_CALL)):
            reader.claim()

    return tagged((_CALL, _FUNCTION), call)


def _written(tools: Tools, single: bool) -> Form:
    def call(tool: Tool) -> Form:
        values = arguments(tool, lambda name: series(_PARAMETER, name, ">"), _END_PARAMETER, line=True)
        return series(f"\n{_FUNCTION}{plain_name(tool.name)}>\n", values, f"{_END_FUNCTION}\n", Tag(_END_CALL))

    return calls_of(tools, call, "", single=True)


WRITING = among_text(_CALL, _written, _FUNCTION)
