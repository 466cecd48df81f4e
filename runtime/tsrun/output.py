"""What a step brings: a matrix in the executor's memory, valid until the next step."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tskernels.dtypes import size_bytes
from tsrun._core import score

if TYPE_CHECKING:
    from tsrun.sampler import Chosen

Second = tuple[int, float]
"""The second likeliest token, and its probability among those whose logits were kept."""


@dataclass(frozen=True, slots=True)
class Output:
    """Row s is of the step's sequence s: logits `[S, V]`, embeddings `[S, D]`, or tokens `[S]` in i32.

    largest: the first index of each row's largest logit where the program has found it, -1 where that is not finite. chosen: what came
    of logits or embeddings.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    largest: NDArray[np.int32] | None = None
    chosen: Chosen | None = None

    def numbers(self) -> NDArray[np.float32]:
        """The rows as f32: a copy where they are stored otherwise."""
        if self.dtype == "bf16":
            return (self._array(np.dtype(np.uint16)).astype(np.uint32) << 16).view(np.float32)
        return self._array(np.dtype({"f32": np.float32, "f64": np.float64, "f16": np.float16}[self.dtype])).astype(np.float32, copy=False)

    def largest_tokens(self) -> NDArray[np.int32]:
        """[S]: of logits the first index of each row's largest, -1 where that is not finite."""
        if self.largest is not None:
            return self.largest
        numbers = self.numbers()
        found = numbers.argmax(axis=1).astype(np.int32)
        return np.where(np.isfinite(numbers[np.arange(len(found)), found]), found, np.int32(-1))

    def tokens(self) -> NDArray[np.int32]:
        """[S]: the next token of each sequence that gets one, or negative why there is none (`tsrun.sampler.Chosen`)."""
        if self.chosen is not None:
            return self.chosen.tokens
        assert self.dtype == "i32", f"tokens of type {self.dtype}"
        return self._array(np.dtype(np.int32))

    def _array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        memory = (ctypes.c_uint8 * (prod(self.shape) * size_bytes(self.dtype))).from_address(self.address)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(self.shape)


def second_tokens(logits: Output, rows: Sequence[int]) -> Mapping[int, Second]:
    """Of these rows; not of one whose largest logit is not finite, or is the only one."""
    largest = logits.largest_tokens()
    finite = np.array([row for row in rows if largest[row] >= 0], dtype=np.int32)
    counts = np.full_like(finite, 2)
    found = score(logits.address, logits.dtype, logits.shape[1], finite, largest[finite], counts)
    others = ((row, token, chance) for row, (_, top) in zip(finite.tolist(), found, strict=True) for token, chance in top)
    return {row: (token, math.exp(chance)) for row, token, chance in others if token != largest[row]}
