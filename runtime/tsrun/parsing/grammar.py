"""What all formats share: tags in a text, what a grammar is given and gives, and calls whose arguments are JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tsrun.parsing.json_text import JsonText, buffered, checked
from tsrun.parsing.parts import Parts, is_unicode
from tsrun.parsing.reader import NAME_LIMIT, Malformed, Reader, Wait

Grammar: TypeAlias = Callable[[Reader, Parts], Wait[None]]
"""Reads a text to its end."""
Body: TypeAlias = Callable[[Reader, Parts, str], Wait[None]]
"""Reads what follows a tag, which it is given. It may stop anywhere, or raise Malformed."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of the request; `parameters` is the JSON schema of its arguments, which they must follow where it is `strict`."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


Tools: TypeAlias = Sequence[Tool]


def plain(reader: Reader, parts: Parts) -> Wait[None]:
    """Text without calls."""
    while (yield from reader.more()):
        parts.content(reader.take(len(reader.text) - reader.at))


def attempt(reader: Reader, parts: Parts, call: Wait[None]) -> Wait[None]:
    """Read a call; what was read and is none becomes content, and reading goes on where it stopped."""
    with suppress(Malformed):
        yield from call
    parts.settle()


def tagged(tags: tuple[str, ...], body: Body) -> Grammar:
    """Content in which tags begin calls."""

    def grammar(reader: Reader, parts: Parts) -> Wait[None]:
        while (tag := (yield from reader.until(tags, parts.content))) is not None:
            yield from attempt(reader, parts, body(reader, parts, tag))

    return grammar


def section(begin: str, call_begin: str, end: str, call: Callable[[Reader, Parts], Wait[None]]) -> Grammar:
    """Content with sections of calls, and calls outside of sections too. The end of a section may be missing."""

    def calls(reader: Reader, parts: Parts, tag: str) -> Wait[None]:
        if tag == begin:
            yield from reader.space()
            yield from reader.expect(call_begin)
        while True:
            yield from call(reader, parts)
            yield from reader.space()
            if (yield from reader.expect(call_begin, end)) == end:
                reader.claim()
                return

    return tagged((begin, call_begin), calls)


def json_arguments(reader: Reader, parts: Parts, name: str, id: str | None, *ends: str) -> Wait[None]:
    """Read a call's arguments, an object, and a tag that ends them. The object may be missing; if it is not, the tag may be."""
    yield from reader.space()
    if ends and (yield from reader.literal(*ends)):
        parts.call(name, id, "{}")
        return
    yield from _stream_object(reader, parts, name, id)
    if ends:
        yield from reader.space()
        if (yield from reader.literal(*ends)):
            reader.claim()


def json_call(reader: Reader, parts: Parts, names: frozenset[str] | None = None) -> Wait[None]:
    """Read a call that is an object with `name` and `arguments`, or `parameters`; other keys are skipped.

    Arguments stream if the name came first. They may be missing, null, or a string that holds the object. With `names`, other names are
    malformed.
    """
    name: str | None = None
    id: str | None = None
    arguments: str | None = None
    begun = False
    yield from reader.expect("{")
    while True:
        yield from reader.space()
        key = yield from _string(reader)
        yield from reader.space()
        yield from reader.expect(":")
        yield from reader.space()
        if key == "name" and name is None:
            name = yield from _string(reader)
            if not 0 < len(name) <= NAME_LIMIT or not is_unicode(name) or (names is not None and name not in names):
                raise Malformed
        elif key in ("arguments", "parameters") and arguments is None and not begun:
            if name is not None and (yield from reader.ahead(1)) == "{":
                begun = True
                yield from _stream_object(reader, parts, name, id)
            else:
                arguments = _object((yield from buffered(reader)))
        elif key == "id" and (yield from reader.ahead(1)) == '"':
            id = yield from _string(reader)
            if not 0 < len(id) <= NAME_LIMIT or not is_unicode(id):
                id = None
        elif key in ("name", "arguments", "parameters"):
            raise Malformed
        else:
            yield from buffered(reader)
        yield from reader.space()
        if (yield from reader.expect(",", "}")) == "}":
            break
    if begun:
        reader.claim()
    elif name is not None:
        parts.call(name, id, arguments or "{}")
    else:
        raise Malformed


def _stream_object(reader: Reader, parts: Parts, name: str, id: str | None) -> Wait[None]:
    if (yield from reader.ahead(1)) != "{":
        raise Malformed
    value = JsonText(reader, parts.arguments)
    parts.begin(name, id, value.closers)
    yield from value.read()
    parts.end()


def _string(reader: Reader) -> Wait[str]:
    if (yield from reader.ahead(1)) != '"':
        raise Malformed
    text: str = json.loads((yield from buffered(reader)))
    return text


def _object(text: str) -> str:
    """The object that stands for arguments: itself, null, or in a string."""
    if text.startswith('"'):
        text = checked(json.loads(text) or "{}") or ""
    if text == "null":
        return "{}"
    if not text.startswith("{") or not is_unicode(text):
        raise Malformed
    return text
