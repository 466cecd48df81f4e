"""GLM-4.5 and later: `<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>value</arg_value>\n</tool_call>`."""

from __future__ import annotations

from tsrun.parsing.forms import Form, Maybe, Tag, series
from tsrun.parsing.grammar import Grammar, Tool, Tools, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.typed import ArgumentWriter, TypedArguments
from tsrun.parsing.typed_writing import arguments
from tsrun.parsing.writing import among_text, calls_of, plain_name

_CALL, _END_CALL = "<tool_call>", "</tool_call>"
_KEY, _END_KEY = "<arg_key>", "</arg_key>"
_VALUE, _END_VALUE = "<arg_value>", "</arg_value>"
TAGS = (_CALL, _END_CALL, _KEY, _END_KEY, _VALUE, _END_VALUE)


def glm(tools: Tools) -> Grammar:
    """It is a call when its first key has begun, or the call has ended. A name that is no tool's makes a call too."""
    typed = TypedArguments(tools)

    def call(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
        yield from reader.space()
        name = yield from reader.name()
        writer: ArgumentWriter | None = None
        while True:
            yield from reader.space()
            if (yield from reader.expect(_KEY, _END_CALL)) == _END_CALL:
                break
            key = yield from reader.name()
            yield from reader.expect(_END_KEY)
            yield from reader.space()
            yield from reader.expect(_VALUE)
            writer = writer or ArgumentWriter(parts, name)
            writer.key(key)
            if not (yield from typed.read(reader, writer, typed.types(name, key), _END_VALUE, line=False)):
                return
        (writer or ArgumentWriter(parts, name)).close()

    return tagged((_CALL,), call)


def _written(tools: Tools, single: bool) -> Form:
    def begin(name: Form) -> Form:
        return series(Tag(_KEY), name, Tag(_END_KEY), Maybe("\n"), Tag(_VALUE))

    def call(tool: Tool) -> Form:
        return series(plain_name(tool.name), Maybe("\n"), arguments(tool, begin, _END_VALUE, line=False), Tag(_END_CALL))

    return calls_of(tools, call, "", single=True)


WRITING = among_text(_CALL, _written)
