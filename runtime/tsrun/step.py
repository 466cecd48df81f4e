"""The input of one step: flat int32 arrays, from the scheduler on rank 0 and from the wire on the others.

Dimensions: T tokens and S sequences in the step, P pages of the longest block table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
HEADER_INTS = 4


class Step(Protocol):
    """What every rank needs of a step plan."""

    @property
    def ids(self) -> Ints: ...
    @property
    def positions(self) -> Ints: ...
    @property
    def slots(self) -> Ints: ...
    @property
    def spans(self) -> Ints: ...
    @property
    def lengths(self) -> Ints: ...
    @property
    def last(self) -> Ints: ...
    @property
    def tables(self) -> Ints: ...


@dataclass(frozen=True, slots=True)
class UnpackedStep:
    """A step read from a message; its arrays are views of the message."""

    ids: Ints
    positions: Ints
    slots: Ints
    spans: Ints
    lengths: Ints
    last: Ints
    tables: Ints


def step_shape(step: Step) -> tuple[int, int, int]:
    """T, S and P."""
    return len(step.ids), len(step.last), step.tables.shape[1]


def packed_ints(T: int, S: int, P: int) -> int:
    """How many int32 a step of this shape takes, header included."""
    return HEADER_INTS + 3 * T + 4 * S + S * P


def pack(step: Step, opcode: int, message: Ints) -> int:
    """Write header and arrays into `message`; return the count of int32 written."""
    T, S, P = step_shape(step)
    message[:HEADER_INTS] = (opcode, T, S, P)
    at = HEADER_INTS
    for array in (step.ids, step.positions, step.slots, step.spans, step.lengths, step.last, step.tables):
        message[at : at + array.size] = array.reshape(-1)
        at += array.size
    return at


def unpack(message: Ints) -> UnpackedStep:
    """The step in a message, without a copy."""
    T, S, P = (int(n) for n in message[1:HEADER_INTS])
    sizes = (T, T, T, 2 * S, S, S, S * P)
    arrays = []
    at = HEADER_INTS
    for size in sizes:
        arrays.append(message[at : at + size])
        at += size
    ids, positions, slots, spans, lengths, last, tables = arrays
    return UnpackedStep(ids, positions, slots, spans.reshape(S, 2), lengths, last, tables.reshape(S, P))
