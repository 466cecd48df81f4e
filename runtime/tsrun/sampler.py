"""How a request's tokens are chosen, and who gets one in a step. The choice itself is in C++ (runtime/csrc/sampling.hpp).

Dimensions: S sequences in the step. A token's random number comes from its request's seed and its position, not from a stream that requests
share, so it does not depend on what else is in the batch, on chunking, or on a preemption.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from tsrun._core import Sampler, choose
from tsrun.errors import RequestError
from tsrun.output import Output
from tsrun.step import Ints

_SHOWN_BITS = 128  # of a number in an error


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen.

    Filters apply in this order, each over what the one before left: temperature, `top_k` (0 is off), `top_p` (1 is off),
    `min_p` (0 is off). `seed` None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("top-k", self.top_k), ("seed", self.seed)):
            if value is not None and not isinstance(value, Integral):
                raise _refused(name, value, "give a whole number")
        if not (_is_finite(self.temperature) and self.temperature >= 0):
            raise _refused("temperature", self.temperature, "give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise _refused("top-k", self.top_k, "give 0 (off) or a positive count")
        if not 0 < self.top_p <= 1:
            raise _refused("top-p", self.top_p, "give a number above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise _refused("min-p", self.min_p, "give a number from 0 (off) to 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise _refused("seed", self.seed, "give a number from 0 to 2**64 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def keep(self) -> int:
        """How many of the largest logits decide the token; 0 is all."""
        return 1 if self.greedy else self._top_k

    def sampler(self) -> Sampler:
        """What chooses the tokens of one request, with a seed of its own where none is given."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampler(temperature=self.temperature, top_k=self._top_k, top_p=self.top_p, min_p=self.min_p, seed=seed)

    @property
    def _top_k(self) -> int:
        """As an int32, which no vocabulary outgrows."""
        return min(self.top_k, 2**31 - 1)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float holds
        return False


def _refused(name: str, value: object, mend: str) -> RequestError:
    huge = isinstance(value, int) and value.bit_length() > _SHOWN_BITS
    return RequestError(name, "got a number of too many digits" if huge else f"got {value}", mend)


@dataclass(frozen=True, slots=True)
class Draws:
    """The tokens that a step is to bring. samplers: of its sequences, None of one that gets no token; positions: of the tokens, [S]."""

    samplers: Sequence[Sampler | None]
    positions: Ints

    def tokens(self, logits: Output) -> Ints:
        """[S]: -1 where the largest logit is not finite, or one is NaN; of no meaning where a sequence gets no token. Without the
        interpreter's lock."""
        return choose(logits.address, logits.dtype, logits.shape[1], self.samplers, self.positions, logits.largest)
