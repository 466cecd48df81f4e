"""What the engine takes and gives: requests, events, and the logits that an observer may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tsrun.constraint import Constraint
from tsrun.errors import RequestError
from tsrun.sampler import Sampling

Phase = Literal["queue", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("queue", "prefill", "decode")
"""Of a request, one after the other: it waits, its prompt is computed, it gets tokens."""
FinishReason = Literal["stop", "length", "abort", "deadline", "error"]
Blame = Literal["request", "model", "engine"]
"""Whose an error is: what the request asks can not be, the model's numbers are none, or the engine did not get to it."""
NO_TOKENS = "the model gives embeddings, and no tokens", "compile its checkpoint for generation: `tsc compile CHECKPOINT --entry decode`"
NO_EMBEDDINGS = "the model gives tokens, and no embeddings", "compile its checkpoint for them: `tsc compile CHECKPOINT --entry embed`"
"""What is wrong with a request for the other, and how to mend it."""
_MOST_LOGPROBS = 20
_MOST_SIBLINGS = 128


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt and how to continue it. `max_tokens` None is as far as the context goes.

    user: whose requests share one turn in the queue; priority: 0 goes first, to 7; deadline_seconds: from its submission on, when it ends
    with what it has; cache_salt: only requests of one salt find each other's prompts in the prefix cache; stop_token_ids: tokens that end
    it, beside the model's own, which `ignore_eos` leaves out; logprobs: give the log probability of each token, and of so many of the
    likeliest, 20 at most, as the model has them before anything is adjusted, filtered or constrained; prompt_logprobs: the same for the
    tokens of the prompt, which is then computed anew, in small steps; constraint: what the answer must look like; where nothing more may
    come it ends, `ignore_eos` or not; shown: special tokens that are text here; min_tokens: it has so many before a token ends it,
    unless its constraint leaves no other, and before stop strings are looked for.
    """

    prompt: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    user: int = 0
    priority: int = 0
    deadline_seconds: float | None = None
    cache_salt: str | None = None
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    shown: tuple[int, ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, count in (("logprobs", self.logprobs), ("prompt-logprobs", self.prompt_logprobs)):
            if count is not None and not 0 <= count <= _MOST_LOGPROBS:
                raise RequestError(name, f"got {count}", f"give a count from 0 to {_MOST_LOGPROBS}")
        if self.min_tokens < 0 or (self.max_tokens is not None and self.min_tokens > self.max_tokens):
            raise RequestError("min-tokens", f"got {self.min_tokens}", "give a count from 0 to that of the most tokens")

    @property
    def needs_logits(self) -> tuple[str, ...]:
        """What it asks for that a model which picks tokens can not give."""
        asked = {
            "temperature": not self.sampling.greedy,
            "logprobs": self.logprobs is not None,
            "prompt-logprobs": self.prompt_logprobs is not None,
            "constraint": self.constraint is not None,
            "min-tokens": self.min_tokens > 0,
        }
        return (*self.sampling.adjusted_by, *(name for name, is_asked in asked.items() if is_asked))

    @property
    def keep(self) -> int:
        """How many of the largest logits it looks at; 0 is all."""
        is_free = self.constraint is None and not self.min_tokens
        return self.sampling.keep if self.logprobs is None and is_free else 0


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A sequence to embed, of a model that gives embeddings; its fields are those of a `GenerationRequest`."""

    prompt: Sequence[int]
    user: int = 0
    priority: int = 0
    deadline_seconds: float | None = None
    cache_salt: str | None = None

    @property
    def as_generation(self) -> GenerationRequest:
        """What the steps make of it: an answer of one token, which nobody looks at; its row is what was asked for."""
        return GenerationRequest(
            self.prompt,
            max_tokens=1,
            user=self.user,
            priority=self.priority,
            deadline_seconds=self.deadline_seconds,
            cache_salt=self.cache_salt,
        )


def siblings(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """Requests for n answers to one prompt. Where it has a seed the i-th, from 0 on, has the seed + i, past the largest from 0 again.

    Submitted one after the other they share the prompt's pages: the scheduler holds back who needs a page that another computes.
    """
    if not 1 <= n <= _MOST_SIBLINGS:
        raise RequestError("n", f"got {n}", f"give a count from 1 to {_MOST_SIBLINGS}")
    seed = request.sampling.seed
    if seed is None:
        return [request] * n
    return [replace(request, sampling=replace(request.sampling, seed=(seed + i) % 2**64)) for i in range(n)]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model held a token. top: the tokens that it held likeliest and their log probabilities, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Times:
    """When a request was submitted, was first computed, had its first token and ended, in seconds of the machine's monotonic clock; None
    where that has not come, or never will."""

    submitted: float
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def phases(self) -> list[tuple[Phase, float, float]]:
        """Those that are over, with when they began and ended."""
        at = (self.submitted, self.started, self.first_token)
        found: list[tuple[Phase, float, float]] = []
        for phase, began, ended in zip(PHASES, at, (*at[1:], self.ended), strict=True):
            end = self.ended if ended is None else ended
            if began is not None and end is not None:
                found.append((phase, began, end))
        return found


@dataclass(frozen=True, slots=True)
class Event:
    """What a step brought a request. A token may bring no text yet; the last event carries the reason.

    cached_tokens: of its prompt, that were found in the prefix cache when it was first admitted. stopped_by: the stop string, or the
    token, that it stopped at. logprobs: of each token, where the request asks for them; prompt_logprobs: of each token of the
    prompt but the first, with the first token. error: why it could not go on, in one line; blame: who that lies with. embedding: what an
    `EmbeddingRequest` asked for, of length 1, as little-endian f32. drafted: tokens that the step verified; accepted: those of
    them that came. times: with its first token, and with its last event; events that
    differ by nothing else are equal.
    """

    request: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    stopped_by: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None
    blame: Blame = "model"
    embedding: bytes | None = None
    drafted: int = 0
    accepted: int = 0
    times: Times | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Running:
    """A request that holds pages, between two steps. phase: the scheduler's state; length: tokens of prompt and answer; computed: of these,
    those of committed steps, whose keys and values are in its pages."""

    request: int
    phase: str
    prompt: int
    length: int
    computed: int
    pages: int


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine is busy with: requests, and pages of the caches without a window, of which cached ones that no request holds are
    free too."""

    running: int
    waiting: int
    free_pages: int
    cached_pages: int
    preemptions: int


@dataclass(slots=True)
class Speculated:
    """Since the engine was opened. drafts: how often a step had any of a sequence; draft_tokens: of these; accepted_tokens: that came."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PageEvent:
    """A full page that the prefix cache has from now on, or no more. hash: of its text up to its end, 64 bits; parent: of the page before,
    0 where it is the first; tokens: those of the page, of one that is removed none. Groups of ranks have pages of their own."""

    stored: bool
    rank_group: int
    hash: int
    parent: int
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepLogits:
    """The logits of one step, for an observer. `logits` is the executor's own memory: copy what outlives the call.

    Row s belongs to `requests[s]` and follows the token at `positions[s]`. Where `samples[s]` is false the row is that
    of a prefill chunk which does not end its prompt. A request that ended while the step was planned may still have a row.
    """

    requests: NDArray[np.int64]
    positions: NDArray[np.int32]
    samples: NDArray[np.bool_]
    logits: NDArray[np.float32]
