"""The types that a tool's schema gives its parameters."""

from __future__ import annotations

from typing import Any

import pytest

from tsrun.parsing import Tool
from tsrun.parsing.typed import TypedArguments


def types(schema: Any, **more: Any) -> set[str]:
    return set(TypedArguments([Tool("f", {"properties": {"x": schema}, **more})]).types("f", "x"))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"enum": ["a", 1, None]}, {"string", "number", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "string"}, {"type": "array"}]}, {"string", "array"}),
        ({"oneOf": [{"type": "string"}, {"anyOf": [{"type": "null"}]}]}, {"string", "null"}),
        ({"anyOf": [{"type": "string"}, {}]}, set()),
        ({"description": "anything"}, set()),
        (True, set()),
        ({"$ref": "#/$defs/T"}, {"object"}),
        ({"$ref": "#/$defs/none"}, set()),
        ({"$ref": "https://example.org/schema"}, set()),
        ({"anyOf": [{"$ref": "#/$defs/T"}, {"$ref": "#/$defs/T"}, {"type": "null"}]}, {"object", "null"}),
    ],
)
def test_a_schema_names_types(schema: Any, expected: set[str]) -> None:
    assert types(schema, **{"$defs": {"T": {"type": "object"}}}) == expected


def test_a_schema_that_refers_to_itself_many_times_is_read_once() -> None:
    circle = {"anyOf": [{"$ref": f"#/$defs/{n % 2}"} for n in range(1000)]}
    assert types(circle, **{"$defs": {"0": circle, "1": circle}}) == set()


def test_a_deep_schema_names_nothing() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {"anyOf": [schema]}
    assert types(schema) == set()


def test_unknown_tools_and_odd_schemas_name_nothing() -> None:
    assert TypedArguments([Tool("f", {"properties": []}), Tool("g")]).types("f", "x") == frozenset()
    assert TypedArguments([Tool("g")]).types("g", "x") == frozenset()
    assert TypedArguments([]).types("h", "x") == frozenset()
