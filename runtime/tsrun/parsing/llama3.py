"""Llama 3.1 and later: the answer is `{"name": "f", "parameters": {…}}`, several with `;` between, perhaps after `<|python_tag|>`."""

from __future__ import annotations

from tsrun.parsing import writing
from tsrun.parsing.forms import Form, Free, Maybe, Tag, Unwritable, one_of, series
from tsrun.parsing.grammar import Grammar, Tool, Tools, attempt, json_call, tagged
from tsrun.parsing.parts import Parts
from tsrun.parsing.reader import Reader, Wait

_TAG = "<|python_tag|>"
TAGS = (_TAG,)


def llama3(tools: Tools) -> Grammar:
    """Without the tag a call stands at the start of the answer, and an object there is one only if its `name`
    is a tool's: any other is content that is JSON. After the tag every name makes a call."""
    names = frozenset(tool.name for tool in tools)

    def grammar(reader: Reader, parts: Parts) -> Wait[None]:
        yield from attempt(reader, parts, _calls(reader, parts, names))
        yield from tagged((_TAG,), lambda reader, parts, tag: _calls(reader, parts, None))(reader, parts)

    return grammar


def _calls(reader: Reader, parts: Parts, names: frozenset[str] | None) -> Wait[None]:
    while True:
        yield from reader.space()
        yield from json_call(reader, parts, names)
        yield from reader.space()
        yield from reader.expect(";")


def _call(tools: Tools) -> Form:
    return series(Maybe(Tag(_TAG)), writing.calls_of(tools, _written, "", single=True))


def _answer(tools: Tools, content: Form | None, without: tuple[str, ...]) -> Form:
    """Calls, or text; since calls have no tag of their own, text does not begin with a brace."""
    if content is not None:
        raise Unwritable("an answer that is a call or of a form of its own, since both may begin alike")
    calls = series(Maybe(Tag(_TAG)), writing.calls_of(tools, _written, "; ", single=False))
    return Maybe(one_of(calls, Free((_TAG, *without), begins=r"\s*[^\s{]")))


def _written(tool: Tool) -> Form:
    return writing.json_call(tool, "parameters")


WRITING = writing.Writing(_call, _answer)
