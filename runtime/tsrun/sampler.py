"""How a request's tokens are chosen, and who gets one in a step. The choice itself is in C++ (runtime/csrc/sampling.hpp).

Dimensions: S sequences in the step, V vocabulary. A token's random number comes from its request's seed and its position, not from a stream
that requests share, so it does not depend on what else is in the batch, on chunking, or on a preemption. Nor do penalties: they look at the
tokens that the request has, however often these were computed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsrun._core import Sampler, choose
from tsrun.drafts import NOT_REACHED, Drafts
from tsrun.errors import RequestError
from tsrun.output import Output
from tsrun.scoring import Scored, scores
from tsrun.step import Ints

if TYPE_CHECKING:
    from tsrun._core import Logprobs
    from tsrun.allowed import Allowed

Words = NDArray[np.uint32]
NOT_FINITE = -1
"""Instead of a token: the model's largest logit is not finite, or one is NaN."""
NONE_ALLOWED = -2
"""Instead of a token: what is allowed has no finite logit."""
NOT_KEPT = -3
"""Instead of a token, where few logits were kept: what is allowed may be among the others."""
_MOST_BIASES = 1024
_SHOWN_BITS = 128  # of a number in an error


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen.

    First logits are adjusted: those of tokens of prompt or answer by `repetition_penalty` (divided where positive, else multiplied; 1 is
    off), then those of tokens of the answer by `frequency_penalty` for each time and `presence_penalty` once, and `logit_bias` is added,
    by token. Then filters apply in this order, each over what the one before left: temperature, `top_k` (0 is off), `top_p` (1 is off),
    `min_p` (0 is off). Without a temperature the largest adjusted logit decides. `seed` None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("top-k", self.top_k), ("seed", self.seed)):
            if value is not None and not isinstance(value, Integral):
                raise refused(name, value, "give a whole number")
        if not (_is_finite(self.temperature) and self.temperature >= 0):
            raise refused("temperature", self.temperature, "give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise refused("top-k", self.top_k, "give 0 (off) or a positive count")
        if not 0 < self.top_p <= 1:
            raise refused("top-p", self.top_p, "give a number above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise refused("min-p", self.min_p, "give a number from 0 (off) to 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise refused("seed", self.seed, "give a number from 0 to 2**64 - 1")
        for name, penalty in (("presence-penalty", self.presence_penalty), ("frequency-penalty", self.frequency_penalty)):
            if not -2 <= penalty <= 2:
                raise refused(name, penalty, "give a number from -2 to 2, 0 being off")
        if not (_is_finite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise refused("repetition-penalty", self.repetition_penalty, "give a positive number, 1 being off")
        if len(self.logit_bias) > _MOST_BIASES:
            raise refused("logit-bias", f"{len(self.logit_bias)} tokens", f"give at most {_MOST_BIASES}")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, Integral):
                raise refused("logit-bias", f"the token {token!r}", "give ids of tokens")
            if not -100 <= bias <= 100:
                raise refused("logit-bias", f"{bias} for token {token}", "give numbers from -100 to 100")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def adjusted_by(self) -> tuple[str, ...]:
        """The parameters that change the model's logits before one is chosen."""
        asked = {
            "logit-bias": bool(self.logit_bias),
            "presence-penalty": self.presence_penalty != 0,
            "frequency-penalty": self.frequency_penalty != 0,
            "repetition-penalty": self.repetition_penalty != 1,
        }
        return tuple(name for name, is_asked in asked.items() if is_asked)

    @property
    def keep(self) -> int:
        """How many of the largest logits decide the token; 0 is all."""
        if self.adjusted_by:
            return 0
        return 1 if self.greedy else self._top_k

    def sampler(self, prompt: Sequence[int] = (), *, allowed: Words | None = None, logprobs: int | None = None) -> Sampler:
        """What chooses the tokens of one request, with a seed of its own where none is given.

        allowed: a bit for each token, in words of whole blocks, of what comes next and after each draft; logprobs: of so many of the
        likeliest tokens.
        """
        return Sampler(
            temperature=self.temperature,
            top_k=self._top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            logit_bias=list(self.logit_bias.items()),
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            prompt=np.array(prompt, dtype=np.int32) if self.adjusted_by else None,
            allowed=allowed,
            num_logprobs=-1 if logprobs is None else logprobs,
        )

    @property
    def _top_k(self) -> int:
        """As an int32, which no vocabulary outgrows."""
        return min(self.top_k, 2**31 - 1)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float holds
        return False


def refused(name: str, value: object, mend: str) -> RequestError:
    """The error of a parameter that is out of its range."""
    huge = isinstance(value, int) and value.bit_length() > _SHOWN_BITS
    return RequestError(name, "got a number of too many digits" if huge else f"got {value}", mend)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What came of a step's rows: tokens [S + D] (`tsrun.drafts`), or negative why there is none (NOT_FINITE, NONE_ALLOWED, NOT_REACHED),
    of no meaning where a sequence gets no token; logprobs: of the rows whose requests ask for them; scores: of tokens of prompts;
    embeddings: of the sequences that end, by their places, instead of tokens."""

    tokens: Ints
    logprobs: Mapping[int, Logprobs] = field(default_factory=dict)
    scores: Sequence[tuple[Scored, Logprobs]] = ()
    embeddings: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draws:
    """The tokens that a step is to bring. samplers: of its sequences, None of one that gets no token; positions [S]: of the tokens, where
    all drafts come; masks: over when the samplers may read what is allowed; scored: tokens of prompts, by the step's last rows; keep: so
    many of each row's largest logits are there, 0 being all; asked: by their places, what says of sequences whose largest logit alone
    is there whether its token may come; told: what is only to hear of the others' tokens."""

    samplers: Sequence[Sampler | None]
    positions: Ints
    masks: Future[None] | None = None
    scored: Sequence[Scored] = ()
    keep: Ints | None = None
    asked: Mapping[int, Allowed] = field(default_factory=dict)
    told: Mapping[int, Allowed] = field(default_factory=dict)
    drafts: Drafts = field(default_factory=Drafts)

    def choose(self, logits: Output) -> Chosen:
        """Without the interpreter's lock. What says which tokens are allowed has taken them then."""
        if self.masks is not None:
            self.masks.result()
        rows = (logits.address, logits.dtype, logits.shape[1])
        samplers = [None if s in self.asked else sampler for s, sampler in enumerate(self.samplers)] if self.asked else self.samplers
        drafts = (self.drafts.counts, self.drafts.tokens) if self.drafts.tokens.size else ()
        tokens, logprobs = choose(*rows, samplers, self.positions, logits.largest, self.keep, *drafts)
        for branch in self.drafts.turned(tokens) if self.drafts.branches else ():
            further: list[Sampler | None] = [None] * len(samplers)
            further[branch.number] = samplers[branch.sequence]
            found, more = choose(*rows, further, self.positions, logits.largest, self.keep)
            tokens[branch.number] = found[branch.number]
            logprobs |= more
        for s, allowed in self.asked.items():
            assert logits.largest is not None
            self._ask(s, allowed, logits.largest, tokens)
        for s, allowed in self.told.items():
            for _, token in self.drafts.came(tokens, s):
                if token >= 0:
                    allowed.take(token)
        return Chosen(tokens, logprobs, scores(logits, self.scored) if self.scored else ())

    def choose_again(self, logits: Output, chosen: Chosen) -> Chosen:
        """Those that few logits did not decide, by all of them. A draft after such a one is not looked at any more."""
        rows = np.flatnonzero(chosen.tokens == NOT_KEPT)
        samplers: list[Sampler | None] = [None] * len(chosen.tokens)
        positions = np.concatenate((self.positions, self.positions[self.drafts.sequences] + self._from_last))
        sequences = np.concatenate((np.arange(len(self.samplers), dtype=np.int32), self.drafts.sequences))
        for row in rows:
            samplers[row] = self.samplers[sequences[row]]
        tokens, _ = choose(logits.address, logits.dtype, logits.shape[1], samplers, positions)
        for row in rows:
            if tokens[row] >= 0:
                self.asked[sequences[row]].take(int(tokens[row]))
        return replace(chosen, tokens=np.where(chosen.tokens == NOT_KEPT, tokens, chosen.tokens))

    @property
    def _from_last(self) -> Ints:
        """[D]: of the row of each draft, where it is from its sequence's last."""
        return self.drafts.before - self.drafts.counts[self.drafts.sequences]

    def _ask(self, s: int, allowed: Allowed, largest: Ints, tokens: Ints) -> None:
        tokens[s] = NOT_REACHED
        for row, draft in self.drafts.rows_of(s):
            token = int(largest[row])
            if token >= 0 and not allowed.permits(token):
                allowed.fill()
                token = NOT_KEPT
            tokens[row] = token
            if token < 0:
                return
            allowed.take(token)
            if token != draft:
                return
