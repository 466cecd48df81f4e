"""Equations of `einsum`: what each letter of `the,hec->thc` is to the product. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tskernels.registry import one_float_type

if TYPE_CHECKING:
    from tskernels.registry import Call


@dataclass(frozen=True, slots=True)
class Equation:
    """Letters of the operands and the result in order, and by what they are: batch, in all three; rows, in x and the result; columns, in
    y and the result; summed, in both operands alone."""

    x: str
    y: str
    out: str
    batch: str
    rows: str
    columns: str
    summed: str


def parsed(text: str) -> Equation:
    """An equation as the op has it: a letter of one operand alone is in the result."""
    operands, out = text.split("->")
    x, y = operands.split(",")
    batch, summed = "".join(c for c in x if c in y and c in out), "".join(c for c in x if c in y and c not in out)
    return Equation(x, y, out, batch, "".join(c for c in x if c not in y), "".join(c for c in y if c not in x), summed)


def is_batched_matmul(call: Call) -> bool:
    """one float type, and an equation of one letter that is summed over, last in x, one of y alone, last in the result, and at most one \
of each other kind."""
    e = parsed(str(call.attributes["equation"]))
    single = len(e.summed) == len(e.columns) == 1 and len(e.batch) <= 1 and len(e.rows) <= 1
    return one_float_type(call) and single and e.x[-1] == e.summed and e.out[-1] == e.columns and e.y[-1] in e.summed + e.columns


def matmul_dimensions(text: str) -> Sequence[float]:
    """Of such an equation: which dimensions are batch and row of x; batch, column and summed of y; batch and row of the result; -1 where
    there is none."""
    e = parsed(text)
    places = ((e.x, e.batch), (e.x, e.rows), (e.y, e.batch), (e.y, e.columns), (e.y, e.summed), (e.out, e.batch), (e.out, e.rows))
    return [float(operand.index(letter)) if letter else -1.0 for operand, letter in places]
