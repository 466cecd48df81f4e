"""How an op carries placements: each rule is derived from labels on the factors of its operands and result.

A signature names the factors of an op the way einsum does. Everything the placement compiler knows of an op follows from it:
a label shared by operands and result may be split in all of them; a label that is summed over may be split in all
operands that have it, which leaves a pending sum, and one that the largest is taken over a pending max; an op that is linear in some
operands carries a pending sum of them.
Sound means: gather[result](op(local operands)) equals op(gather[operands](local operands)).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tsc.types import AxisPlacement

Label = str | None
"""A factor with label None may never be split."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Labels per factor of each operand and of the result.

    summed: labels that the op sums over (or looks rows up in, where foreign rows are zero).
    maxed: labels that the op takes the largest over.
    linear: sets of operands; when all of a set are pending sums and the others replicated, the result is a pending sum.
    added: operands that the op adds to what it sums: each rank adds a summand of them to its own.
    """

    operands: tuple[tuple[Label, ...], ...]
    result: tuple[Label, ...]
    summed: frozenset[str] = frozenset()
    linear: tuple[tuple[int, ...], ...] = ()
    maxed: frozenset[str] = frozenset()
    added: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """On one axis: what each operand must be for the result to be that."""

    operands: tuple[AxisPlacement, ...]
    result: AxisPlacement


@lru_cache(maxsize=4096)
def rules(signature: Signature) -> tuple[Rule, ...]:
    """All sound rules of one axis, the replicated one first."""
    found = [Rule((None,) * len(signature.operands), None)]
    for index, label in enumerate(signature.result):
        if label is not None:
            found.append(Rule(_split(signature, label), index))
    for label in sorted(signature.summed):
        found.append(Rule(tuple("sum" if p is None and i in signature.added else p for i, p in enumerate(_split(signature, label))), "sum"))
    for label in sorted(signature.maxed):
        found.append(Rule(_split(signature, label), "max"))
    for group in signature.linear:
        found.append(Rule(tuple("sum" if i in group else None for i in range(len(signature.operands))), "sum"))
    return tuple(found)


def _split(signature: Signature, label: str) -> tuple[AxisPlacement, ...]:
    return tuple(labels.index(label) if label in labels else None for labels in signature.operands)
