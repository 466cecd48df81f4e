"""How a model's text is to be read: which parser, for one request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tsrun.constraint import Constraint
from tsrun.parsing import CallEnd, Parser, Part
from tsrun.parsing.grammar import plain


def plain_text() -> Parser:
    """All of it is content."""
    return Parser(plain)


class TextParser(Protocol):
    """Reads text as it comes. What may yet be part of a tag waits for what follows."""

    def feed(self, text: str) -> list[Part]: ...
    def finish(self) -> list[Part]: ...


class FirstCalls:
    """What another parser reads, up to the end of so many calls."""

    def __init__(self, parser: TextParser, most: int) -> None:
        self._parser = parser
        self._left = most

    def feed(self, text: str) -> list[Part]:
        return self._first(self._parser.feed(text))

    def finish(self) -> list[Part]:
        return self._first(self._parser.finish())

    def _first(self, parts: list[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            if self._left:
                found.append(part)
                self._left -= isinstance(part, CallEnd)
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """shown: the special tokens that the parser has to see as text; constraint: what the whole text must look like."""

    parser: Callable[[], TextParser] = plain_text
    shown: tuple[int, ...] = ()
    constraint: Constraint | None = None
