"""The sampler by its definition, in NumPy: what `tsrun._core.choose` is held to. Dimensions: V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsrun.sampler import Sampling

_FIRST_NUCLEUS = 256  # most nuclei are smaller; a larger one is found by widening, never by sorting the whole vocabulary first


def choose(logits_V: NDArray[np.float32], sampling: Sampling, seed: int, position: int) -> int:
    """The token for `position` (its index in the sequence). Of equal logits greedy takes the lowest id."""
    if sampling.greedy:
        return int(np.argmax(logits_V))
    ids, weights = filtered(logits_V, sampling)
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, uniform(seed, position) * cumulative[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def adjusted(
    logits_V: NDArray[np.float32], sampling: Sampling, prompt: Sequence[int] = (), answer: Sequence[int] = ()
) -> NDArray[np.float32]:
    """The logits with penalties and biases, in f64 and rounded once."""
    changed = logits_V.astype(np.float64)
    counts = np.bincount(np.array(answer, dtype=np.int64), minlength=len(changed))
    seen = counts > 0
    seen[np.array(prompt, dtype=np.int64)] = True
    repeated = changed[seen]
    changed[seen] = np.where(repeated > 0, repeated / sampling.repetition_penalty, repeated * sampling.repetition_penalty)
    changed -= sampling.frequency_penalty * counts
    changed -= sampling.presence_penalty * (counts > 0)
    for token, bias in sampling.logit_bias.items():
        changed[token] += bias
    return changed.astype(np.float32)


def logprobs(logits_V: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of every token, by the logits as the model gave them."""
    shifted = logits_V.astype(np.float64) - logits_V.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


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
