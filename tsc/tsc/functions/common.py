"""What every function of the language is made of: a shape rule with a signature, and the checks that many share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsc.signatures import Label, Signature
from tsc.static import UNKNOWN
from tsc.types import Factor, Shape


class Mismatch(Exception):
    """Operand `operand` does not fit, or a static argument where that is None; the elaborator adds the places."""

    def __init__(self, operand: int | None, message: str) -> None:
        super().__init__(message)
        self.operand = operand


@dataclass(frozen=True, slots=True)
class Typing:
    """What a function makes of its operands."""

    shape: Shape
    signature: Signature
    attributes: Mapping[str, Any] = field(default_factory=dict)


Infer = Callable[[Sequence[Shape], Mapping[str, Any]], Typing]


@dataclass(frozen=True, slots=True)
class Builtin:
    """`tensors` are its tensor parameters in order, the `optional` ones last; `statics` its static ones with defaults (`...`: none);
    `shown` the operands' types that docs/rules.md shows its rules with; `leading` the statics that a call gives before its tensors;
    `windowed`: it reads a cache, within the cache's window; `stateful`: it reads and overwrites the states of the step's sequences."""

    tensors: tuple[str, ...]
    infer: Infer
    shown: tuple[str, ...]
    statics: Mapping[str, Any] = field(default_factory=dict)
    optional: int = 0
    leading: tuple[str, ...] = ()
    windowed: bool = False
    stateful: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """All of them, in the order in which a call gives them by position."""
        return (*self.leading, *self.tensors, *(s for s in self.statics if s not in self.leading))

    @property
    def fewest(self) -> int:
        """Tensors that a call has at least."""
        return len(self.tensors) - self.optional


def labels_of(shape: Shape, prefix: str, blocked: int = 0) -> tuple[Label, ...]:
    """One label a factor, the last `blocked` ones unsplittable."""
    keep = len(shape.factors) - blocked
    return tuple(f"{prefix}{i}" if i < keep else None for i in range(len(shape.factors)))


def want_rank(shapes: Sequence[Shape], operand: int, rank: int, what: str) -> None:
    if len(shapes[operand].factors) < rank:
        raise Mismatch(operand, f"{what} needs at least {rank} dimensions, got {shapes[operand].text()}")


def same_type(shapes: Sequence[Shape], what: str) -> None:
    if not shapes[0].agrees(shapes[1]):
        raise Mismatch(1, f"{what} needs two values of one type, got {shapes[0].text()} and {shapes[1].text()}")


def number(statics: Mapping[str, Any], name: str, op: str) -> Any:
    value = statics[name]
    if value is UNKNOWN:
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Mismatch(None, f"`{name}` of `{op}` is a number, and this is {value!r}")
    return float(value)


def count(statics: Mapping[str, Any], name: str, op: str, least: int = 1) -> Any:
    value = statics[name]
    if value is UNKNOWN:
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Mismatch(None, f"`{name}` of `{op}` is a whole number of at least {least}, and this is {value!r}")
    return value


def flag(statics: Mapping[str, Any], name: str, op: str) -> Any:
    value = statics[name]
    if value is not UNKNOWN and not isinstance(value, bool):
        raise Mismatch(None, f"`{name}` of `{op}` is true or false, and this is {value!r}")
    return value


def choice(statics: Mapping[str, Any], name: str, op: str, choices: Sequence[str]) -> Any:
    value = statics[name]
    if value is not UNKNOWN and value not in choices:
        raise Mismatch(None, f"`{name}` of `{op}` is one of {', '.join(choices)}, and this is {value!r}")
    return value


def names_of(factors: Sequence[Factor]) -> str:
    names = ", ".join(f.name for f in factors)
    return f"({names})" if len(factors) > 1 else names
