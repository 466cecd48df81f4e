"""Turns a growing list of token ids into text piece by piece, never half a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6  # of the prompt: decoders strip or join at the start of a text, and the answer is not at the start


class Decoder(Protocol):
    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Decodes a short window of ids and gives out what is new in it.

    The window starts where a piece began that has been given out, so that the decoder sees what stands before; text that
    ends in a replacement character is withheld, since the next token may complete the character. The pieces joined, with
    `flush` at the end, are the text of the request.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int] = ()) -> None:
        self._decoder = decoder
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._start = 0
        self._given = len(self._ids)
        self._given_text = decoder.decode(self._ids) if self._ids else ""

    def feed(self, token: int) -> str:
        """Take one more token; return the text that is now certain, often nothing."""
        self._ids.append(token)
        text = self._decoder.decode(self._ids[self._start :])
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._given_text):
            return ""
        piece = text[len(self._given_text) :]
        self._start, self._given = self._given, len(self._ids)
        self._given_text = self._decoder.decode(self._ids[self._start :])
        return piece

    def flush(self) -> str:
        """What was withheld, with replacement characters for bytes that never became a character."""
        text = self._decoder.decode(self._ids[self._start :])
        piece = text[len(self._given_text) :]
        self._start = self._given = len(self._ids)
        self._given_text = ""
        return piece
