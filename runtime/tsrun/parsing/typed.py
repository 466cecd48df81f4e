"""Arguments of formats that are not JSON: written as JSON, and of the types that the tool's schema says."""

from __future__ import annotations

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
        self._types: dict[tuple[str, str], frozenset[str]] = {}

    def types(self, tool: str, parameter: str) -> frozenset[str]:
        """The JSON types that a parameter may have; none where the schema does not say."""
        if (tool, parameter) not in self._types:
            root = self._schemas.get(tool, {})
            properties = root.get("properties")
            schema = properties.get(parameter) if isinstance(properties, Mapping) else None
            self._types[tool, parameter] = _Schema(root).types(schema, 0)
        return self._types[tool, parameter]

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
    """A value of one of the types (of any where there are none), or else a string. Strings stand as they are, so quotes are part of one."""
    word = text.strip()
    value = checked(_WORDS.get(word, word))
    if value is None or value.startswith('"'):
        return dump(text)
    kinds = {_type_of(value)}
    if kinds & {"integer", "number"}:
        kinds = {"number", "integer"} if float(value).is_integer() else {"number"}
    return value if not types or kinds & types else dump(text)


def _type_of(json_text: str) -> str:
    return {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}.get(json_text[0], "number")


class _Schema:
    """Follows the references of a schema, each once, so that one which refers to itself takes no longer than another."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._referred: dict[str, frozenset[str]] = {}

    def types(self, schema: Any, depth: int) -> frozenset[str]:
        """The types that a schema names, itself or in its alternatives; what is not understood names none."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return frozenset()
        named = schema.get("type")
        if isinstance(named, str):
            return frozenset({named})
        if isinstance(named, list):
            return frozenset(name for name in named if isinstance(name, str))
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            return frozenset(_type_of(dump(value)) for value in values)
        if isinstance(reference := schema.get("$ref"), str):
            if reference not in self._referred:
                self._referred[reference] = frozenset()  # what a circle comes back to
                self._referred[reference] = self.types(self._at(reference), depth + 1)
            return self._referred[reference]
        for keyword in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(keyword), list):
                found = [self.types(option, depth + 1) for option in options]
                return frozenset().union(*found) if all(found) else frozenset()
        return frozenset()

    def _at(self, reference: str) -> Any:
        start, *steps = reference.split("/")
        place: Any = self._root if start == "#" else None
        for step in steps:
            place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
        return place
