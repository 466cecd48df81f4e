"""Rows of a step that stay for the program which drafts (`keep` of an entry), and those that a draft keeps for the next."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tskernels.dtypes import size_bytes
from tsrun.memory import Zeros, zeros
from tsrun.places import Place, extent, fixed, value
from tsrun.program import Input, Program
from tsrun.step import Ints


class Kept:
    """Room for steps of so many tokens. taken: what a draft takes, by name; made: what it keeps itself. They are apart, since a draft
    reads the one while it writes the other. memory: gives zeros of a shape and type."""

    def __init__(self, program: Program, tokens: int, memory: Zeros = zeros) -> None:
        self.taken: Mapping[str, Place] = {name: _room(given, tokens, memory) for name, given in program.kept.items()}
        self.made: Mapping[str, Place] = {name: _room(given, tokens, memory) for name, given in program.kept_by_drafts.items()}
        rows = [(given, self.taken[name], self.made[name]) for name, given in program.kept_by_drafts.items()]
        self._rows = [(_rows(given, taken, tokens), _rows(given, made, tokens)) for given, taken, made in rows]

    def carry(self, rows_T: Ints) -> None:
        """Of what a draft has kept the next one takes these rows, in this order."""
        if rows_T.size:
            for taken, made in self._rows:
                taken[: len(rows_T)] = made[rows_T]


def _room(given: Input, tokens: int, memory: Zeros) -> Place:
    assert given.dtype is not None
    rows, *rest = (extent(size) for size in given.shape or ())
    room = memory((value(rows, {"T": tokens}), *_numbers(rest)), given.dtype)
    return fixed(room.address, given.dtype, (rows, *rest), room.buffer)


def _rows(given: Input, room: Place, tokens: int) -> Any:
    """[T, bytes of a row]: an array of NumPy's, or where memory is a tensor's, that."""
    assert given.dtype is not None
    row_bytes = size_bytes(given.dtype) * int(np.prod(list(_numbers(given.shape or ()))))
    whole: Any = np.frombuffer(room.buffer, dtype=np.uint8) if isinstance(room.buffer, mmap.mmap) else room.buffer
    return whole[: tokens * row_bytes].reshape(tokens, row_bytes)


def _numbers(shape: Iterable[object]) -> Iterable[int]:
    return (size for size in shape if isinstance(size, int))
