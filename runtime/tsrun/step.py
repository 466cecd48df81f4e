"""The input of one step: flat int32 arrays, from the scheduler on rank 0 and from the wire on the others.

Dimensions: T tokens and S sequences in the step, G groups of caches, U changed entries of the block tables, C copied
states, K rows that another draft has kept, E entries of the block tables for one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tsrun._core import StepPlan

Ints = NDArray[np.int32]
HEADER_INTS = 8
NO_ROWS = np.zeros(0, dtype=np.int32)
NO_COPIES = np.zeros((0, 3), dtype=np.int32)
NO_ENTRIES = np.zeros((0, 4), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Step:
    """What every rank needs of a step plan. The arrays are views, of the plan or of a message. keep: how many of a sequence's largest
    logits will be looked at; 0 is all. drafting: it is for what guesses one token further, over the rows that the step before has kept;
    carried [T]: where that was a draft, too, which of its rows each of these goes on from; scratch [., 4]: entries for this
    step alone, each group, sequence of the step, index, page."""

    ids: Ints
    positions: Ints
    slots: Ints
    spans: Ints
    lengths: Ints
    last: Ints
    keep: Ints
    table_rows: Ints
    table_updates: Ints
    copies: Ints
    carried: Ints = field(default_factory=NO_ROWS.copy)
    scratch: Ints = field(default_factory=NO_ENTRIES.copy)
    drafting: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, plan: StepPlan, keep_S: Ints) -> Self:
        return cls(
            ids=plan.ids,
            positions=plan.positions,
            slots=plan.slots,
            spans=plan.spans,
            lengths=plan.lengths,
            last=plan.last,
            keep=keep_S,
            table_rows=plan.table_rows,
            table_updates=plan.table_updates,
            copies=plan.copies,
        )

    @property
    def arrays(self) -> tuple[Ints, ...]:
        """In the order of a message."""
        first = (self.ids, self.positions, self.slots, self.spans, self.lengths, self.last, self.keep)
        return (*first, self.table_rows, self.table_updates, self.copies, self.carried, self.scratch)


def with_rows(step: Step, rows: Sequence[int] | Ints, keep: Sequence[int] | Ints) -> Step:
    """The step with the logits of some rows more: each gets a sequence that has no rows of its own. keep: as in `Step`, of each."""
    end, num_rows = len(step.ids), len(rows)
    nothing = np.zeros(num_rows, dtype=np.int32)
    return replace(
        step,
        spans=np.concatenate((step.spans, np.full((num_rows, 2), end, dtype=np.int32))),
        lengths=np.concatenate((step.lengths, nothing)),
        last=np.concatenate((step.last, np.asarray(rows, dtype=np.int32))),
        keep=np.concatenate((step.keep, np.asarray(keep, dtype=np.int32))),
        table_rows=np.concatenate((step.table_rows, nothing)),
    )


def packed_ints(step: Step) -> int:
    """How many int32 a step takes, header included."""
    return HEADER_INTS + sum(array.size for array in step.arrays)


def pack(step: Step, opcode: int, message: Ints) -> None:
    """Write header and arrays into `message`, which has room for them."""
    sized = (step.ids, step.last, step.slots, step.table_updates, step.copies, step.carried, step.scratch)
    message[:HEADER_INTS] = (opcode, *map(len, sized))
    at = HEADER_INTS
    for array in step.arrays:
        message[at : at + array.size] = array.reshape(-1)
        at += array.size


def announced_ints(header: Ints) -> int:
    """The size of the message that begins so."""
    return HEADER_INTS + sum(rows * columns for rows, columns in _shapes(header))


def unpack(message: Ints) -> Step:
    """The step in a message, without a copy."""
    arrays = []
    at = HEADER_INTS
    for rows, columns in _shapes(message):
        arrays.append(message[at : at + rows * columns].reshape(rows, columns))
        at += rows * columns
    ids, positions, slots, spans, lengths, last, keep, table_rows, table_updates, copies, carried, scratch = arrays
    of_sequences = lengths[0], last[0], keep[0], table_rows[0]
    return Step(ids[0], positions[0], slots, spans, *of_sequences, table_updates, copies, carried[0], scratch)


def _shapes(header: Ints) -> tuple[tuple[int, int], ...]:
    """Of the arrays, in the order of a message; what has one dimension is one row."""
    T, S, G, U, C, K, E = (int(n) for n in header[1:HEADER_INTS])
    return (1, T), (1, T), (G, T), (S, 2), (1, S), (1, S), (1, S), (1, S), (U, 4), (C, 3), (1, K), (E, 4)
