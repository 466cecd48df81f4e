"""Checks JSON as it arrives, and gives out as much of it as can still be made whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tsrun.parsing.reader import Malformed, Reader, Wait

MAX_DEPTH = 64
_SCALAR_LIMIT = 512
"""Characters of a number: Python's own `json` refuses integers of more than 4,300 digits."""
_SCALAR_RUN = re.compile(r"[-+.\w]+")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_SPACE = re.compile(r"[ \t\n\r]+")
_CLOSER = {"{": "}", "[": "]"}


class JsonText:
    """Reads one value and writes its text as it is, but control characters within strings, which models leave raw, are escaped.

    Text is written up to points where brackets and a quote make it JSON: a key waits for its value and a number for its end; strings that
    are values are written as they come. Malformed are, besides what is no JSON, depths over 64 and numbers of more than 512 characters.
    """

    def __init__(self, reader: Reader, write: Callable[[str], None]) -> None:
        self._reader = reader
        self._write = write
        self._open: list[str] = []  # what closes the containers that are open
        self._in_value = False  # in a string that is a value, of which a part may have been written
        self._held: list[str] = []

    def closers(self) -> str:
        """What would make JSON of the text written so far."""
        return '"' * self._in_value + "".join(reversed(self._open))

    def read(self) -> Wait[None]:
        reader = self._reader
        expected = "value"
        while expected != "nothing":
            if reader.at == len(reader.text) and not (yield from reader.more()):
                raise Malformed
            character = reader.text[reader.at]
            if character in " \t\n\r" and (space := _SPACE.match(reader.text, reader.at)):
                self._take(space.end() - space.start(), whole=not self._held)
            elif expected in ("value", "value or ]") and character != "]":
                if character in _CLOSER:
                    expected = self._begin(character)
                    continue
                yield from self._string(is_key=False) if character == '"' else self._scalar()
                expected = self._after_value()
            elif expected in ("key", "key or }") and character == '"':
                yield from self._string(is_key=True)
                expected = "colon"
            elif expected == "colon" and character == ":":
                self._take(1, whole=False)
                expected = "value"
            elif expected == "comma" and character == ",":
                self._take(1, whole=False)
                expected = "key" if self._open[-1] == "}" else "value"
            elif expected in ("comma", "key or }", "value or ]") and character == self._open[-1]:
                self._open.pop()
                self._take(1, whole=True)
                expected = self._after_value()
            else:
                raise Malformed

    def _after_value(self) -> str:
        return "comma" if self._open else "nothing"

    def _begin(self, bracket: str) -> str:
        if len(self._open) == MAX_DEPTH:
            raise Malformed
        self._open.append(_CLOSER[bracket])
        self._take(1, whole=True)
        return "key or }" if bracket == "{" else "value or ]"

    def _scalar(self) -> Wait[None]:
        scalar = yield from self._reader.run(_SCALAR_RUN, _SCALAR_LIMIT)
        cut = self._open and not (yield from self._reader.more())
        if cut or not _SCALAR.fullmatch(scalar):
            raise Malformed
        self._held.append(scalar)
        self._take(0, whole=True)

    def _string(self, *, is_key: bool) -> Wait[None]:
        reader = self._reader
        self._in_value = not is_key
        self._take(1, whole=not is_key)
        while True:
            if not (yield from reader.more()):
                raise Malformed
            character = reader.text[reader.at]
            if plain := _PLAIN.match(reader.text, reader.at):
                self._take(plain.end() - plain.start(), whole=not is_key)
            elif character == '"':
                self._in_value = False
                self._take(1, whole=not is_key)
                return
            elif character == "\\":
                start = yield from reader.ahead(2)
                escape = _ESCAPE.fullmatch((yield from reader.ahead(6 if start == "\\u" else 2)))
                if escape is None:
                    raise Malformed
                self._take(escape.end(), whole=not is_key)
            else:
                reader.take(1)
                self._held.append(json.dumps(character)[1:-1])
                self._take(0, whole=not is_key)

    def _take(self, count: int, *, whole: bool) -> None:
        """Read characters that are there; `whole`: with them, what was held can be made JSON."""
        if count:
            self._held.append(self._reader.take(count))
        if whole:
            self._write("".join(self._held))
            self._held.clear()


def buffered(reader: Reader) -> Wait[str]:
    """Read one value, and return its text."""
    pieces: list[str] = []
    yield from JsonText(reader, pieces.append).read()
    return "".join(pieces)


def checked(text: str) -> str | None:
    """The JSON text of a value that is there as a whole; None if it is malformed."""
    reader = Reader()
    reader.push(text.strip(" \t\n\r"))
    reader.end()
    pieces: list[str] = []
    try:
        for _ in JsonText(reader, pieces.append).read():
            raise AssertionError("it waits for text after the end")
    except Malformed:
        return None
    return "".join(pieces) if reader.at == len(reader.text) else None
