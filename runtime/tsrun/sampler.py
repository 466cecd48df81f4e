"""Chooses a token from logits: greedy, or the inverse CDF of the filtered distribution at one uniform per (seed, position).

Dimensions: V vocabulary. A request's uniforms come from a counter, not from a stream that requests share, so its tokens
do not depend on what else is in the batch, on chunking, or on a preemption.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsrun.errors import RequestError

_FIRST_NUCLEUS = 256  # most nuclei are smaller; a larger one is found by widening, never by sorting the whole vocabulary first


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
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError("temperature", f"got {self.temperature}", "give 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise RequestError("top-k", f"got {self.top_k}", "give 0 (off) or a positive count")
        if not 0 < self.top_p <= 1:
            raise RequestError("top-p", f"got {self.top_p}", "give a number above 0 and at most 1 (off)")
        if not 0 <= self.min_p <= 1:
            raise RequestError("min-p", f"got {self.min_p}", "give a number from 0 (off) to 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise RequestError("seed", f"got {self.seed}", "give a number from 0 to 2**64 - 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def keep(self) -> int:
        """How many of the largest logits decide the token; 0 is all."""
        return 1 if self.greedy else self.top_k

    def resolved_seed(self) -> int:
        return secrets.randbits(63) if self.seed is None else self.seed


def choose(logits_V: NDArray[np.float32], sampling: Sampling, seed: int, position: int) -> int:
    """The token for `position` (its index in the sequence). Of equal logits greedy takes the lowest id."""
    best = int(np.argmax(logits_V))  # argmax stops at the first NaN, so that one look finds it
    if not np.isfinite(logits_V[best]):
        raise RequestError(f"position {position}", f"the model's largest logit is {logits_V[best]}", "check the weights and the dtype")
    if sampling.greedy:
        return best
    ids, weights = filtered(logits_V, sampling)
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform(seed, position) * cumulative[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def uniform(seed: int, position: int) -> float:
    """One number in [0, 1) that only the seed and the position decide."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def filtered(logits_V: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be chosen, by ascending id, and their probabilities up to a common factor."""
    scaled = logits_V.astype(np.float64)
    scaled -= scaled.max()  # before the division, so that a tiny temperature gives -inf and not NaN
    weights = np.exp(scaled / sampling.temperature)
    ids = np.arange(len(weights), dtype=np.int64)
    if 0 < sampling.top_k < len(ids):
        ids = np.sort(_most_probable(weights, sampling.top_k))
    if sampling.top_p < 1:
        ids = np.sort(ids[_nucleus(weights[ids], sampling.top_p)])
    if sampling.min_p > 0:
        ids = ids[weights[ids] >= sampling.min_p]  # the largest weight is 1
    return ids, weights[ids]


def _most_probable(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Exactly `count` indices, the largest weight first; of equal weights the lowest index first."""
    threshold = np.partition(weights, len(weights) - count)[len(weights) - count]
    candidates = np.flatnonzero(weights >= threshold)
    order = np.argsort(-weights[candidates], kind="stable")
    return candidates[order][:count]


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The fewest most probable indices whose share reaches `top_p`."""
    share = top_p * weights.sum()
    count = min(_FIRST_NUCLEUS, len(weights))
    while True:
        ids = _most_probable(weights, count)
        mass = np.cumsum(weights[ids])
        if mass[-1] >= share or count == len(weights):
            return ids[: int(np.searchsorted(mass, share, side="left")) + 1]
        count = min(count * 8, len(weights))
