"""What a model's text means, piece by piece: reasoning, content, and calls of tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tsrun.parsing.reader import Reader


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool. `index` counts the answer's calls from 0; `id` is there only where the format carries one."""

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments. The pieces of a call, joined, are the JSON text of an object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of a call. Not `complete`: the model broke off or went wrong within the arguments, and brackets were closed for it."""

    index: int
    complete: bool = True


Part: TypeAlias = Reasoning | Content | CallBegin | CallArguments | CallEnd
Text: TypeAlias = type[Reasoning] | type[Content]


class Parts:
    """Collects the parts of an answer.

    White space around reasoning, before a call, and between a call and the end belongs to the format and is dropped, so it is withheld
    until it is known what follows. All other text is given out as it is.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._parts: list[Part] = []
        self._pieces: list[str] = []  # text or arguments that are certain, not yet a part
        self._kind: Text | type[CallArguments] = Content
        self._space: list[str] = []  # white space that was withheld
        self._drop_leading = False
        self._only_space = False  # since a call
        self._index = -1
        self._closers: Callable[[], str] | None = None

    def content(self, text: str) -> None:
        """Take a piece of content, which may be empty, and everything that was read for it."""
        self._text(Content, text)

    def reasoning(self, text: str) -> None:
        """Take a piece of reasoning, which may be empty, and everything that was read for it."""
        self._text(Reasoning, text)

    def begin(self, name: str, id: str | None, closers: Callable[[], str]) -> None:
        """Begin a call; `closers` gives, at any time, what would make JSON of the arguments given so far."""
        self._switch(CallArguments)
        self._index += 1
        self._parts.append(CallBegin(self._index, name, id))
        self._closers = closers
        self._reader.claim()

    def arguments(self, text: str) -> None:
        self._pieces.append(text)
        self._reader.claim()

    def end(self, *, complete: bool = True) -> None:
        self._flush()
        self._parts.append(CallEnd(self._index, complete))
        self._closers = None
        self._reader.claim()

    def call(self, name: str, id: str | None, arguments: str) -> None:
        """A call whose arguments are there as a whole."""
        self.begin(name, id, str)
        self.arguments(arguments)
        self.end()

    def settle(self) -> None:
        """Whatever was read and is no part of a call becomes content. A call that is still open is closed, and if the text broke off
        in it, what is left of it (half a key or a number) is dropped."""
        if self._closers is not None and self._reader.ended:
            self._reader.skip()
        left = self._reader.unclaimed()
        if self._closers is not None:
            self.arguments(self._closers())
            self.end(complete=False)
        if left:
            self.content(left)

    def finish(self) -> None:
        """Nothing follows."""
        if self._kind is Content and not self._only_space:
            self._pieces += self._space
        self._space = []
        self._flush()

    def drain(self) -> list[Part]:
        """The parts that are certain since the last time."""
        self._flush()
        parts, self._parts = self._parts, []
        return parts

    def _text(self, kind: Text, text: str) -> None:
        self._reader.claim()
        if kind is not self._kind:
            self._switch(kind)
        if self._drop_leading:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            self._pieces += [*self._space, body]
            self._space = []
            self._drop_leading = self._only_space = False
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def _switch(self, kind: Text | type[CallArguments]) -> None:
        self._flush()
        self._space = []
        self._drop_leading = kind is Reasoning or self._kind is Reasoning
        self._only_space = self._kind is CallArguments
        self._kind = kind

    def _flush(self) -> None:
        if text := "".join(self._pieces):
            if self._kind is CallArguments:
                self._parts.append(CallArguments(self._index, text))
            else:
                self._parts.append(Content(text) if self._kind is Content else Reasoning(text))
        self._pieces = []


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def dump(value: object) -> str:
    """JSON text of a value; raises ValueError for what JSON has no text for. Halves of surrogate pairs are escaped."""
    text = _ENCODER.encode(value)
    return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
