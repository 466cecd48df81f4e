"""Sizes that are known when a step runs: expressions over its tokens, sequences and table columns, the device's multiprocessors, and the
sizes and strides of a call's operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final, Literal, cast

Name = Literal["T", "S", "P", "SMS"]
Operation = Literal["+", "*", "//", "cdiv", "min", "max", "gcd"]
Json = int | str | list["Json"]

_OPERATIONS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "cdiv": lambda a, b: -(-a // b),
    "min": min,
    "max": max,
    "gcd": gcd,
}


class Expression:
    """What sizes are made of, with the arithmetic of numbers."""

    def __add__(self, other: int | Expression) -> Compound:
        return Compound("+", self, other)

    def __mul__(self, other: int | Expression) -> Compound:
        return Compound("*", self, other)

    def __floordiv__(self, other: int | Expression) -> Compound:
        return Compound("//", self, other)

    __radd__ = __add__
    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class Symbol(Expression):
    """T tokens, S sequences (or rows of logits) and P table columns of a step; SMS multiprocessors of the device."""

    name: Name


@dataclass(frozen=True, slots=True)
class Dimension(Expression):
    """The size of an operand's dimension: what the call leaves open (tokens or rows of logits, a page's rows)."""

    operand: int
    index: int


@dataclass(frozen=True, slots=True)
class Stride(Expression):
    """Elements from one to the next in an operand's dimension: an operand may be a view of a wider value. Results have no gaps."""

    operand: int
    index: int


@dataclass(frozen=True, slots=True)
class Compound(Expression):
    operation: Operation
    left: int | Expression
    right: int | Expression


T: Final = Symbol("T")
S: Final = Symbol("S")
P: Final = Symbol("P")
SMS: Final = Symbol("SMS")


def cdiv(left: int | Expression, right: int | Expression) -> Compound:
    """Rounded up."""
    return Compound("cdiv", left, right)


def smaller(left: int | Expression, right: int | Expression) -> Compound:
    return Compound("min", left, right)


def larger(left: int | Expression, right: int | Expression) -> Compound:
    return Compound("max", left, right)


def common_divisor(left: int | Expression, right: int | Expression) -> Compound:
    """The greatest."""
    return Compound("gcd", left, right)


Sizes = Sequence[Sequence[int | Expression]]
"""Of each operand, of each dimension."""


def of_operands(size: int | Expression, shapes: Sizes, strides: Sizes) -> int | Expression:
    """With the sizes and strides of a call's operands put in: what depends on step and device alone."""
    if isinstance(size, Dimension | Stride):
        return (shapes if isinstance(size, Dimension) else strides)[size.operand][size.index]
    if isinstance(size, Compound):
        return Compound(size.operation, of_operands(size.left, shapes, strides), of_operands(size.right, shapes, strides))
    return size


def value(size: int | Expression, known: Mapping[str, int]) -> int:
    """Its number, of a step and a device; `of_operands` comes first."""
    if isinstance(size, int):
        return size
    if isinstance(size, Symbol):
        return known[size.name]
    assert isinstance(size, Compound)
    return _OPERATIONS[size.operation](value(size.left, known), value(size.right, known))


def to_json(size: int | Expression) -> Json:
    """`["cdiv", "T", 16]`."""
    if isinstance(size, int):
        return size
    if isinstance(size, Symbol):
        return size.name
    if isinstance(size, Dimension | Stride):
        return ["dimension" if isinstance(size, Dimension) else "stride", size.operand, size.index]
    assert isinstance(size, Compound)
    return [size.operation, to_json(size.left), to_json(size.right)]


def from_json(given: Json) -> int | Expression:
    """Raises ValueError where it is none."""
    if isinstance(given, int):
        return given
    if given in ("T", "S", "P", "SMS"):
        return Symbol(cast(Name, given))
    if isinstance(given, list) and len(given) == 3 and given[0] in ("dimension", "stride"):
        return (Dimension if given[0] == "dimension" else Stride)(cast(int, given[1]), cast(int, given[2]))
    if isinstance(given, list) and len(given) == 3 and given[0] in _OPERATIONS:
        operation, left, right = given
        return Compound(cast(Operation, operation), from_json(left), from_json(right))
    raise ValueError(f"no size: {given!r}")
