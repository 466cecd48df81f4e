"""Rows of a step that stay for the program which drafts (`keep` of an entry), and those that a draft keeps for the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from tskernels.dtypes import size_bytes
from tsrun.memory import zeros
from tsrun.places import Place, extent, fixed, value
from tsrun.program import Input, Program
from tsrun.step import Ints


class Kept:
    """Room for steps of so many tokens. taken: what a draft takes, by name; made: what it keeps itself. They are apart, since a draft
    reads the one while it writes the other."""

    def __init__(self, program: Program, tokens: int) -> None:
        self.taken: Mapping[str, Place] = {name: _room(given, tokens) for name, given in program.kept.items()}
        self.made: Mapping[str, Place] = {name: _room(given, tokens) for name, given in program.kept_by_drafts.items()}
        rows = [(given, self.taken[name], self.made[name]) for name, given in program.kept_by_drafts.items()]
        self._rows = [(_rows(given, taken, tokens), _rows(given, made, tokens)) for given, taken, made in rows]

    def carry(self, rows_T: Ints) -> None:
        """Of what a draft has kept the next one takes these rows, in this order."""
        if rows_T.size:
            for taken, made in self._rows:
                taken[: len(rows_T)] = made[rows_T]


def _room(given: Input, tokens: int) -> Place:
    assert given.dtype is not None
    rows, *rest = (extent(size) for size in given.shape or ())
    room = zeros((value(rows, {"T": tokens}), *_numbers(rest)), given.dtype)
    return fixed(room.address, given.dtype, (rows, *rest), room.buffer)


def _rows(given: Input, room: Place, tokens: int) -> NDArray[np.uint8]:
    """[T, bytes of a row]."""
    assert given.dtype is not None
    row_bytes = size_bytes(given.dtype) * int(np.prod(list(_numbers(given.shape or ()))))
    return np.frombuffer(room.buffer, dtype=np.uint8)[: tokens * row_bytes].reshape(tokens, row_bytes)  # type: ignore[call-overload]


def _numbers(shape: Iterable[object]) -> Iterable[int]:
    return (size for size in shape if isinstance(size, int))
