"""One answer's way from text to parts."""

from __future__ import annotations

from tsrun.parsing.grammar import Grammar
from tsrun.parsing.parts import Part, Parts
from tsrun.parsing.reader import Reader


class Parser:
    """Takes the text of an answer piece by piece. However it is cut, the parts are the same but for where text and arguments are cut.

    No text raises an error, and none takes more than linear time.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._reader = Reader()
        self._parts = Parts(self._reader)
        self._grammar = grammar(self._reader, self._parts)

    def feed(self, text: str) -> list[Part]:
        """Take the next piece of text; return the parts that are now certain. Text that may become a tag is withheld."""
        self._reader.push(text)
        next(self._grammar, None)
        return self._parts.drain()

    def finish(self) -> list[Part]:
        """The rest, now that no text follows: a call that is not whole is text, or if it has begun, ended and not `complete`."""
        self._reader.end()
        next(self._grammar, None)
        self._parts.finish()
        return self._parts.drain()
