"""DeepSeek V3.1: `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`, in a section; V3 and R1 have a kind, `function`, where V3.1
has the name, and after the separator the name, a line break and the arguments as a block of Markdown."""

from __future__ import annotations

from tsrun.parsing.forms import Form, Json, Maybe, Tag, one_of, series
from tsrun.parsing.grammar import Grammar, Tool, Tools, json_arguments, section
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait
from tsrun.parsing.writing import among_text, calls_of, plain_name, schema_of

_SECTION, _END_SECTION = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_BLOCK, _END_BLOCK = "```json", "```"
TAGS = (_SECTION, _END_SECTION, _CALL, _SEPARATOR, _END_CALL)


def deepseek(tools: Tools) -> Grammar:
    """Both forms: arguments directly after the separator are of V3.1. A name that is no tool's makes a call too."""
    return section(_SECTION, _CALL, _END_SECTION, _call)


def _call(reader: Reader, parts: Parts) -> Wait[None]:
    yield from reader.space()
    name = yield from reader.name()
    yield from reader.space()
    yield from reader.expect(_SEPARATOR)
    yield from reader.space()
    if (yield from reader.ahead(1)) in ("{", "<"):
        yield from json_arguments(reader, parts, name, None, _END_CALL)
        return
    name = yield from reader.name()
    yield from reader.space()
    yield from reader.expect(_BLOCK)
    yield from json_arguments(reader, parts, name, None, _END_BLOCK)
    yield from reader.space()
    if (yield from reader.literal(_END_CALL)):
        reader.claim()


def _written(tools: Tools, single: bool) -> Form:
    def call(tool: Tool) -> Form:
        name, arguments = plain_name(tool.name), Json(schema_of(tool))
        new = series(name, Tag(_SEPARATOR), arguments)
        old = series("function", Tag(_SEPARATOR), f"{name}\n{_BLOCK}\n", arguments, f"\n{_END_BLOCK}")
        return series(Tag(_CALL), one_of(new, old), Tag(_END_CALL))

    return series(calls_of(tools, call, Maybe("\n"), single=single), Tag(_END_SECTION))


WRITING = among_text(_SECTION, _written, _CALL)
