"""GLM-4.5 and later: `<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>value</arg_value>\n</tool_call>`."""

from __future__ import annotations

from tsrun.parsing.grammar import Grammar, Tools, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.typed import ArgumentWriter, TypedArguments

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
