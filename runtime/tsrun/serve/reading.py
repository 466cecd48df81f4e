"""How a model's text is to be read: which parser, for one request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tsrun.parsing import Parser
from tsrun.parsing.grammar import plain


def plain_text() -> Parser:
    """All of it is content."""
    return Parser(plain)


@dataclass(frozen=True, slots=True)
class Reading:
    """shown: the special tokens that the parser has to see as text."""

    parser: Callable[[], Parser] = plain_text
    shown: tuple[int, ...] = ()
