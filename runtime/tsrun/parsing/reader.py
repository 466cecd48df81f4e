"""Reads text that arrives in pieces, from the front, for grammars that are written as generators.

What a grammar reads never depends on how the text was cut: every method waits (it yields) until the text that is there decides. Text is
read once and never again, and less than the longest tag stays unread while a grammar waits, so the work is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Wait: TypeAlias = Generator[None, None, T]
"""What yields whenever it needs more text, and returns T."""

NAME = re.compile(r"[\w.:/$-]+")
"""Names of functions and parameters."""
NAME_LIMIT = 256
_SPACE = re.compile(r"\s+")


class Malformed(Exception):
    """The text is not what a grammar asks for."""


class Reader:
    """The text that is there, and what was read of it but not yet *claimed* as a part: that becomes content if a call is malformed."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._unclaimed: list[str] = []

    def push(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    def end(self) -> None:
        """No text follows."""
        self.ended = True

    def take(self, count: int) -> str:
        """Read characters that are there."""
        text = self.text[self.at : self.at + count]
        self.at += count
        self._unclaimed.append(text)
        return text

    def claim(self) -> None:
        self._unclaimed.clear()

    def skip(self) -> None:
        """Drop what is there, read or not."""
        self.at = len(self.text)
        self.claim()

    def unclaimed(self) -> str:
        return "".join(self._unclaimed)

    def more(self) -> Wait[bool]:
        """Whether a character follows."""
        while self.at == len(self.text):
            if self.ended:
                return False
            yield
        return True

    def ahead(self, count: int) -> Wait[str]:
        """The next characters, unread; fewer at the end."""
        while len(self.text) - self.at < count and not self.ended:
            yield
        return self.text[self.at : self.at + count]

    def literal(self, *tags: str) -> Wait[str | None]:
        """Read whichever of the tags comes next, the longest; None, and nothing is read, where none does."""
        them = _Tags.of(tags)
        while len(self.text) - self.at < them.longest and not self.ended and self.text[self.at :] in them.beginnings:
            yield
        match = them.pattern.match(self.text, self.at)
        return self.take(match.end() - match.start()) if match else None

    def expect(self, *tags: str) -> Wait[str]:
        found = yield from self.literal(*tags)
        if found is None:
            raise Malformed
        return found

    def run(self, pattern: re.Pattern[str], limit: int) -> Wait[str]:
        """Read as many characters as a pattern of the form `[...]+` matches; malformed if there are more than `limit`."""
        pieces = []
        while (yield from self.more()):
            match = pattern.match(self.text, self.at)
            if match is None:
                break
            count = match.end() - self.at
            pieces.append(self.take(min(count, limit)))
            limit -= count
            if limit < 0:
                raise Malformed
        return "".join(pieces)

    def name(self) -> Wait[str]:
        """Read the name of a function or parameter."""
        name = yield from self.run(NAME, NAME_LIMIT)
        if not name:
            raise Malformed
        return name

    def space(self) -> Wait[None]:
        while self.at < len(self.text) or (yield from self.more()):
            match = _SPACE.match(self.text, self.at)
            if match is None:
                return
            self.take(match.end() - self.at)

    def until(self, tags: tuple[str, ...], write: Callable[[str], object]) -> Wait[str | None]:
        """Read up to the first tag and past it. What is before it goes to `write` as soon as it is certain; None if the text ends first."""
        them = _Tags.of(tags)
        while True:
            match = them.pattern.search(self.text, self.at)
            end = match.start() if match else len(self.text) - (0 if self.ended else self._begun(them))
            if end > self.at:
                write(self.take(end - self.at))
            if match:
                return self.take(match.end() - match.start())
            if self.ended:
                return None
            yield

    def _begun(self, tags: _Tags) -> int:
        """The length of the longest end of the unread text that begins a tag."""
        longest = min(len(self.text) - self.at, tags.longest - 1)
        return next((n for n in range(longest, 0, -1) if self.text[-n:] in tags.beginnings), 0)


@dataclass(frozen=True, slots=True)
class _Tags:
    """What is looked for: any of the tags, and what may still become one."""

    pattern: re.Pattern[str]
    longest: int
    beginnings: frozenset[str]

    @staticmethod
    @cache
    def of(tags: tuple[str, ...]) -> _Tags:
        longest_first = sorted(tags, key=len, reverse=True)
        beginnings = frozenset(tag[:n] for tag in tags for n in range(len(tag)))
        return _Tags(re.compile("|".join(map(re.escape, longest_first))), len(longest_first[0]), beginnings)
