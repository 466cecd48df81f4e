"""Embeddings of a step: the rows of sequences that end in it, as vectors of length 1.

Dimensions: S sequences in the step, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsrun.output import Output
from tsrun.sampler import NOT_FINITE, Chosen

_SHORTEST = 1e-12
"""Below which a vector is as good as none: it keeps its zeros."""


def unit(vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector at length 1, computed in f64 from its own numbers alone, and rounded once."""
    length = float(np.sqrt(np.square(vector_D, dtype=np.float64).sum()))
    return (vector_D.astype(np.float64) / max(length, _SHORTEST)).astype("<f4")


@dataclass(frozen=True, slots=True)
class Embeds:
    """The embeddings that a step is to bring: of the sequences at these places."""

    places: Sequence[int]

    def choose(self, rows: Output) -> Chosen:
        """Copies of the rows; of one that is not finite the reason instead."""
        numbers_SD = rows.numbers()
        tokens_S = np.zeros(len(numbers_SD), dtype=np.int32)
        found: dict[int, bytes] = {}
        for s in self.places:
            if np.isfinite(numbers_SD[s]).all():
                found[s] = unit(numbers_SD[s]).tobytes()
            else:
                tokens_S[s] = NOT_FINITE
        return Chosen(tokens_S, embeddings=found)
