"""How the corpus is written: a text, and what it means."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tsrun.parsing import CallArguments, CallBegin, CallEnd, Choice, Content, Part, Reasoning, Tool, named

_TARGET = {"type": "object", "properties": {"host": {"type": "string"}}}
TOOLS = (
    Tool(
        "get_weather",
        {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}}},
    ),
    Tool(
        "search",
        {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "limit": {"type": ["integer", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "filters": {"type": "object"},
            },
        },
    ),
    Tool("write_file", {"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}}),
    Tool(
        "configure",
        {
            "type": "object",
            "properties": {
                "on": {"type": "boolean"},
                "level": {"type": "number"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "target": {"$ref": "#/$defs/Target"},
                "mode": {"const": 3},
                "free": {},
            },
            "$defs": {"Target": _TARGET},
        },
    ),
    Tool("now"),
)


@dataclass(frozen=True)
class Thought:
    """Reasoning."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call, with the value of its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    complete: bool = True


Meaning: TypeAlias = str | Thought | Call
"""A string is content."""


@dataclass(frozen=True)
class Case:
    name: str
    choice: Choice
    text: str
    expected: tuple[Meaning, ...]
    starts_inside: bool


Maker: TypeAlias = Callable[..., Case]


def maker(tools: str | None, reasoning: str | None = None) -> Maker:
    """What makes cases of a format: `case(name, text, *expected)`."""

    def case(name: str, text: str, *expected: Meaning, inside: bool = False) -> Case:
        return Case(f"{tools or reasoning}: {name}", named(tools=tools, reasoning=reasoning), text, expected, inside)

    return case


def meaning(parts: list[Part]) -> tuple[Meaning, ...]:
    """Adjacent text joined, and the pieces of arguments, which must come in order and be JSON."""
    found: list[Meaning] = []
    index = -1
    begun: CallBegin | None = None
    pieces: list[str] = []
    for part in parts:
        match part:
            case Content(text):
                assert text
                assert begun is None
                found[-1:] = [found[-1] + text] if found and isinstance(found[-1], str) else [*found[-1:], text]
            case Reasoning(text):
                assert text
                assert begun is None
                last = found[-1] if found else None
                found[-1:] = [Thought(last.text + text)] if isinstance(last, Thought) else [*found[-1:], Thought(text)]
            case CallBegin():
                assert begun is None
                index += 1
                assert part.index == index
                begun, pieces = part, []
            case CallArguments():
                assert begun is not None
                assert part.index == index
                assert part.text
                pieces.append(part.text)
            case CallEnd():
                assert begun is not None
                assert part.index == index
                arguments = json.loads("".join(pieces).encode(), parse_constant=_refuse)
                assert isinstance(arguments, dict)
                found.append(Call(begun.name, arguments, begun.id, part.complete))
                begun = None
    assert begun is None
    return tuple(found)


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")
