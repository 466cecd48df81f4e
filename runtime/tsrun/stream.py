"""One request's way from tokens to text: eos ids, stop strings, the length limit, and what is shown when."""

from __future__ import annotations

from collections.abc import Collection

from tsrun.detokenizer import Decoder, Detokenizer
from tsrun.generation import FinishReason, GenerationRequest
from tsrun.stops import StopStrings


class Stream:
    """The state of a request on the engine's side. Without a decoder there are tokens and no text."""

    def __init__(self, request: GenerationRequest, *, decoder: Decoder | None, eos_ids: Collection[int], max_tokens: int) -> None:
        self.sampling = request.sampling
        self.sampler = request.sampling.sampler(request.prompt)
        self._detokenizer = None if decoder is None else Detokenizer(decoder, request.prompt)
        self._stops = StopStrings(request.stop)
        self._eos_ids = frozenset() if request.ignore_eos else frozenset(eos_ids)
        self._left = max_tokens

    def take(self, token: int) -> tuple[str, FinishReason | None]:
        """Take the next token; return the text to show and, at the end, why it ended. An eos token has no text."""
        self._left -= 1
        if token in self._eos_ids:
            return self.flush(), "stop"
        text = "" if self._detokenizer is None else self._stops.feed(self._detokenizer.feed(token))
        if self._stops.met is not None:
            return text, "stop"
        if self._left > 0:
            return text, None
        text += self.flush()
        return text, "length" if self._stops.met is None else "stop"

    def flush(self) -> str:
        """The text that was withheld, now that no token follows. It may still end in a stop string."""
        if self._detokenizer is None:
            return ""
        text = self._stops.feed(self._detokenizer.flush())
        return text + self._stops.flush()
