"""One request's way from tokens to text: eos ids, stop strings, the length limit, and what is shown when."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tsrun.allowed import Allowed
from tsrun.detokenizer import Decoder, Detokenizer
from tsrun.generation import FinishReason, GenerationRequest, Times
from tsrun.scoring import PromptScores
from tsrun.stops import StopStrings

if TYPE_CHECKING:
    from tsrun.speculation import Drafter


class SpecialDecoder(Protocol):
    def decode(self, ids: Sequence[int], shown: Collection[int] = ()) -> str: ...


class _Showing:
    """Decodes some special tokens as their text."""

    def __init__(self, decoder: SpecialDecoder, shown: Collection[int]) -> None:
        self._decoder = decoder
        self._shown = frozenset(shown)

    def decode(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(ids, self._shown)


class Stream:
    """The state of a request on the engine's side. Without a decoder there are tokens and no text.

    keep: how many of the largest logits decide; first_keep: how many do most often, where the others may be asked for later. end_ids:
    tokens that end it; drafter: what foresees its tokens. now: when it was submitted, of the clock of `Times`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        decoder: SpecialDecoder | None,
        eos_ids: Collection[int],
        max_tokens: int,
        allowed: Allowed | None = None,
        now: float = 0.0,
    ) -> None:
        self.keep = request.keep
        is_plain = request.sampling.greedy and not request.sampling.adjusted_by and request.logprobs is None
        self.first_keep = 1 if allowed is not None and is_plain else self.keep
        self.allowed = allowed
        bits = None if allowed is None else allowed.bits
        self.sampler = request.sampling.sampler(request.prompt, allowed=bits, logprobs=request.logprobs)
        self.scores = None if request.prompt_logprobs is None else PromptScores(request.prompt, request.prompt_logprobs)
        self.stopped_by: str | int | None = None
        shown: Decoder | None = _Showing(decoder, request.shown) if decoder is not None and request.shown else decoder
        self._detokenizer = None if shown is None else Detokenizer(shown, request.prompt)
        self._stops = StopStrings(request.stop)
        ends_at_eos = not request.ignore_eos or request.constraint is not None  # it then has eos only where nothing else may come
        self.drafter: Drafter | None = None
        self.end_ids = frozenset(request.stop_token_ids) | frozenset(eos_ids if ends_at_eos else ())
        self._left = max_tokens
        self._unended = request.min_tokens
        self._times = Times(submitted=now)

    def take(self, token: int) -> tuple[str, FinishReason | None]:
        """Take the next token; return the text to show and, at the end, why it ended. A token that ends a request has no text."""
        self._left -= 1
        self._unended -= 1
        if token in self.end_ids:
            text = self.flush()
            self.stopped_by = token if self._stops.met is None else self._stops.met
            return text, "stop"
        text = "" if self._detokenizer is None else self._detokenizer.feed(token)
        if self._unended < 0:
            text = self._stops.feed(text)
        if self._stops.met is None and self._left <= 0:
            text += self.flush()
        self.stopped_by = self._stops.met
        if self.stopped_by is not None:
            return text, "stop"
        return text, "length" if self._left <= 0 else None

    def start(self, now: float) -> None:
        """A step computes it for the first time."""
        self._times = replace(self._times, started=now)

    def times_of_token(self, now: float, *, ends: bool) -> Times | None:
        """To be told with a token: of the first, and of the last."""
        is_first = self._times.first_token is None
        if is_first:
            self._times = replace(self._times, first_token=now)
        return self.times_of_end(now) if ends else self._times if is_first else None

    def times_of_end(self, now: float) -> Times:
        return replace(self._times, ended=now)

    def flush(self) -> str:
        """The text that was withheld, now that no token follows. It may still end in a stop string."""
        if self._detokenizer is None:
            return ""
        text = self._stops.feed(self._detokenizer.flush())
        return text + self._stops.flush()
