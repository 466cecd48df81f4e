"""Arguments of formats that have each between tags of its own, as `typed.py` reads them: text where a schema says so, else JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tsrun.parsing.forms import Form, Json, Maybe, Pattern, Repeat, Tag, Until, Unwritable, one_of, series
from tsrun.parsing.grammar import Tool
from tsrun.parsing.reader import NAME
from tsrun.parsing.typed import TypedArguments
from tsrun.parsing.writing import plain_name, schema_of

_NOTES = frozenset({"title", "description", "default", "examples", "example", "deprecated"})
_OF_OBJECTS = _NOTES | {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}
_OF_TEXTS = _NOTES | {"type", "enum", "const"}


def arguments(tool: Tool, begin: Callable[[Form], Form], end: str, *, line: bool) -> Form:
    """All arguments of a call, in the order of the schema. begin: what stands before a value, of its name; end: the tag after it;
    `line`: a value stands on lines of its own."""
    if not tool.strict:
        return Repeat(series(begin(Pattern(NAME.pattern)), Until(end), Maybe("\n")))
    schema = schema_of(tool)
    _check(schema, _OF_OBJECTS, f"arguments of `{tool.name}`")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    for name in required:
        if name not in properties:
            raise Unwritable(f"the argument `{name}`, whose type is not said")
    typed = TypedArguments((tool,))
    found: list[Form] = []
    for name in properties:
        value = _value(schema, name, typed.types(tool.name, name), end, line=line)
        form = series(begin(plain_name(name)), value, Maybe("\n"))
        found.append(form if name in required else Maybe(form))
    return series(*found)


def _value(root: Mapping[str, Any], name: str, types: frozenset[str], end: str, *, line: bool) -> Form:
    schema, margin = root["properties"][name], "\n" if line else ""
    if types and "string" not in types:
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return series(margin, Json({**shared, **schema}), margin, Tag(end))
    if types != {"string"} or "$ref" in schema:
        raise Unwritable(f"the argument `{name}`, which may be a text or something else")
    _check(schema, _OF_TEXTS, f"the argument `{name}`")
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is None:
        return series(margin, Until(end))
    if any(end in value for value in values):
        raise Unwritable(f"values of `{name}` that hold {end}")
    return series(margin, one_of(*values), margin, Tag(end))


def _check(schema: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    for keyword in schema:
        if keyword not in known:
            raise Unwritable(f"{what} with the keyword `{keyword}`")
