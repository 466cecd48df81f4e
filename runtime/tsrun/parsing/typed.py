"""Arguments of formats that are not JSON: written as JSON, and of the types that the tool's schema says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tsrun.parsing.grammar import Tools
from tsrun.parsing.json_text import checked
from tsrun.parsing.parts import Parts, dump
from tsrun.parsing.reader import Reader, Wait

_MAX_DEPTH = 8
_WORDS = {"True": "true", "False": "false", "None": "null"}
"""What chat templates make of JSON's words where they print values as Python does."""
_CLOSER = {"{": "}", "[": "]"}


class ArgumentWriter:
    """Writes the arguments of a call, an object, piece by piece. A key is written with the first piece of its value."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts = parts
        self._open = ["}"]
        self._in_string = False
        self._key = ""
        self._separator = ""
        parts.begin(name, None, self.closers)
        parts.arguments("{")

    def closers(self) -> str:
        return '"' * self._in_string + "".join(reversed(self._open))

    @property
    def depth(self) -> int:
        return len(self._open)

    def key(self, name: str) -> None:
        self._key = dump(name) + ": "

    def value(self, json_text: str) -> None:
        self._write(json_text)
        self._separator = ", "

    def open(self, bracket: str) -> None:
        """Begin an object or array."""
        self._write(bracket)
        self._open.append(_CLOSER[bracket])
        self._separator = ""

    def close(self) -> None:
        """End the object or array that was begun last; the last one of all ends the call."""
        self._parts.arguments(self._open.pop())
        self._separator = ", "
        if not self._open:
            self._parts.end()

    def begin_string(self) -> None:
        self._write('"')
        self._in_string = True

    def string(self, text: str) -> None:
        self._parts.arguments(dump(text)[1:-1])

    def end_string(self) -> None:
        self._in_string = False
        self._parts.arguments('"')
        self._separator = ", "

    def _write(self, text: str) -> None:
        self._parts.arguments(self._separator + self._key + text)
        self._key = ""


class TypedArguments:
    """Values that stand as text between tags, of the types that the schema gives the tool's parameters."""

    def __init__(self, tools: Tools) -> None:
        self._schemas = {tool.name: tool.parameters for tool in tools}

    def types(self, tool: str, parameter: str) -> frozenset[str]:
        """The JSON types that a parameter may have; none where the schema does not say."""
        root = self._schemas.get(tool, {})
        properties = root.get("properties")
        return _types(properties.get(parameter), root, 0) if isinstance(properties, Mapping) else frozenset()

    def read(self, reader: Reader, writer: ArgumentWriter, types: frozenset[str], end: str, *, line: bool) -> Wait[bool]:
        """Read a value up to the tag that ends it, False where there is none. A string is written as it comes; of other types, the value is
        what it says as JSON if that has one of the types, else a string. `line`: a line break after the opening and one before
        the closing tag are not of the value."""
        if line:
            yield from reader.literal("\n")
        if types != {"string"}:
            pieces: list[str] = []
            if (yield from reader.until((end,), pieces.append)) is None:
                return False
            text = "".join(pieces)
            writer.value(_json(text.removesuffix("\n") if line else text, types))
            return True
        writer.begin_string()
        tags = (f"\n{end}", end) if line else (end,)
        if (yield from reader.until(tags, writer.string)) is None:
            return False
        writer.end_string()
        return True


def _json(text: str, types: frozenset[str]) -> str:
    """A value of one of the types (of any where there are none), or else a string."""
    word = text.strip()
    value = checked(_WORDS.get(word, word))
    if value is not None and (not types or _type_of(value) in types or (_type_of(value) == "integer" and "number" in types)):
        return value
    return dump(text)


def _type_of(json_text: str) -> str:
    by_first = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
    return by_first.get(json_text[0]) or ("number" if any(c in json_text for c in ".eE") else "integer")


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    """The types a schema names, itself or in its alternatives; what is not understood names none."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if isinstance(values, list) and values:
            return frozenset(_type_of(json.dumps(value)) for value in values)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        return _types(_at(root, reference), root, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(keyword), list):
            found = [_types(option, root, depth + 1) for option in options]
            return frozenset().union(*found) if all(found) or keyword == "allOf" else frozenset()
    return frozenset()


def _at(root: Mapping[str, Any], reference: str) -> Any:
    place: Any = root
    for step in reference[2:].split("/"):
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place
