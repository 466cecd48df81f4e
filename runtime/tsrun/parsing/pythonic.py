"""Calls written as Python: Llama 3.2 and 4 `[f(a=1), g(b="x")]`, and Gemma 3 blocks of Markdown with the language `tool_code`."""

from __future__ import annotations

import re

from tsrun.parsing.grammar import Grammar, Tools, attempt, tagged
from tsrun.parsing.json_text import MAX_DEPTH
from tsrun.parsing.parts import Parts
from tsrun.parsing.python_calls import Call, python_calls
from tsrun.parsing.reader import NAME_LIMIT, Malformed, Reader, Wait

_START, _END = "<|python_start|>", "<|python_end|>"
TAGS = (_START, _END)
_BLOCK, _END_BLOCK = "```tool_code", "```"
_FUNCTION = re.compile(r"[\w.]+")
_OTHER = re.compile(r"""[^"'()\[\]{}]+""")
_IN_STRING = {quote: re.compile(rf"[^{quote}\\]+") for quote in "\"'"}


def pythonic(tools: Tools) -> Grammar:
    """Without `<|python_start|>` the list stands at the start of the answer, and all its names are tools': any other is content.
    Arguments are literals with keywords. Calls are given out when the list has ended."""
    names = frozenset(tool.name for tool in tools)

    def grammar(reader: Reader, parts: Parts) -> Wait[None]:
        yield from attempt(reader, parts, _list(reader, parts, names))
        yield from tagged((_START,), lambda reader, parts, tag: _list(reader, parts, None))(reader, parts)

    return grammar


def tool_code(tools: Tools) -> Grammar:
    """A block holds calls, a line each, or lists of them; a call within `print` is that call. Any other code is content, and so
    are calls of which one is no tool's. Calls are given out when the block has ended."""
    names = frozenset(tool.name for tool in tools)

    def block(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
        pieces: list[str] = []
        if (yield from reader.until((_END_BLOCK,), pieces.append)) is None:
            raise Malformed
        _give_out(parts, python_calls("".join(pieces)), names)

    return tagged((_BLOCK,), block)


def _list(reader: Reader, parts: Parts, names: frozenset[str] | None) -> Wait[None]:
    yield from reader.space()
    text = yield from _brackets(reader, names)
    _give_out(parts, python_calls(text), names)
    yield from reader.space()
    if names is None and (yield from reader.literal(_END)):
        reader.claim()


def _give_out(parts: Parts, calls: list[Call], names: frozenset[str] | None) -> None:
    if names is not None and not all(call.name in names for call in calls):
        raise Malformed
    for call in calls:
        parts.call(call.name, None, call.arguments)


def _brackets(reader: Reader, names: frozenset[str] | None) -> Wait[str]:
    """Read a list that begins with a call, to its closing bracket. What can not become one is malformed at once."""
    pieces = [(yield from reader.expect("["))]
    yield from reader.space()
    name = yield from reader.run(_FUNCTION, NAME_LIMIT)
    if names is not None and name not in names:
        raise Malformed
    yield from reader.space()
    pieces += [name, (yield from reader.expect("("))]
    depth = 2
    while depth:
        if depth > MAX_DEPTH or (reader.at == len(reader.text) and not (yield from reader.more())):
            raise Malformed
        character = reader.text[reader.at]
        if character in "\"'":
            yield from _string(reader, character, pieces)
        elif match := _OTHER.match(reader.text, reader.at):
            pieces.append(reader.take(match.end() - match.start()))
        else:
            depth += 1 if character in "([{" else -1
            pieces.append(reader.take(1))
    return "".join(pieces)


def _string(reader: Reader, quote: str, pieces: list[str]) -> Wait[None]:
    if (yield from reader.literal(quote * 2, quote)) == quote * 2:
        if not (yield from reader.literal(quote)):
            pieces.append(quote * 2)
            return
        quote *= 3
    pieces.append(quote)
    while not (end := (yield from reader.literal(quote))):
        if not (yield from reader.more()):
            raise Malformed
        if match := _IN_STRING[quote[0]].match(reader.text, reader.at):
            pieces.append(reader.take(match.end() - match.start()))
        else:  # a backslash with what it escapes, or a quote of another kind of string
            escape = "\\" if reader.text[reader.at] == "\\" else ""
            pieces.append(reader.take(len((yield from reader.ahead(len(escape) + 1)))))
    pieces.append(end)
