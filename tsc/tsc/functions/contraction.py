"""Products over named dimensions, parts of one, and one as several."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing
from tsc.signatures import Signature
from tsc.static import UNKNOWN
from tsc.types import Factor, Shape

_EQUATION = re.compile(r"([a-z]+),([a-z]+)->([a-z]+)")


def _einsum(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    equation = statics["equation"]
    if equation is UNKNOWN:  # docs/rules.md
        equation = "the,hec->thc"
    found = _EQUATION.fullmatch(equation.replace(" ", "")) if isinstance(equation, str) else None
    if found is None:
        raise Mismatch(None, f'the equation of `einsum` has a letter for each dimension, as in "t h e, h e c -> t h c", got {equation!r}')
    *operands, result = found.groups()
    factors: dict[str, Factor] = {}
    for index, (letters, shape) in enumerate(zip(operands, shapes, strict=True)):
        if len(letters) != len(shape.factors):
            raise Mismatch(index, f'"{" ".join(letters)}" has {len(letters)} dimensions, and the value {shape.text()} {len(shape.factors)}')
        for letter, factor in zip(letters, shape.factors, strict=True):
            if not factors.setdefault(letter, factor).agrees(factor):
                raise Mismatch(index, f"`{letter}` is {factors[letter].name} and {factor.name} in this equation")
    _check_letters(operands, result)
    if shapes[0].dtype != shapes[1].dtype:
        raise Mismatch(1, f"`einsum` needs one element type, got {shapes[0].text()} and {shapes[1].text()}")
    signature = Signature((tuple(operands[0]), tuple(operands[1])), tuple(result), frozenset(factors) - frozenset(result), ((0,), (1,)))
    return Typing(Shape.of(shapes[0].dtype, [(factors[x],) for x in result]), signature, {"equation": found[0]})


def _check_letters(operands: Sequence[str], result: str) -> None:
    for letters in (*operands, result):
        if len(set(letters)) != len(letters):
            raise Mismatch(None, f'a letter stands once in "{" ".join(letters)}"')
    for letter in dict.fromkeys("".join(operands) + result):
        holders = sum(letter in letters for letters in operands)
        if not holders:
            raise Mismatch(None, f"`{letter}` of the result is in no operand")
        if letter not in result and holders == 1:
            raise Mismatch(None, f"`{letter}` is summed over, so that both operands have it")


def _slice(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    """Statics: `dim`, `start` and `length`; `part`, the factor that is left."""
    [x] = shapes
    dim = len(x.factors) - 1 if statics["dim"] is UNKNOWN else int(statics["dim"])
    part = statics["part"] if isinstance(statics["part"], Factor) else Factor("part", None)
    labels = tuple(None if i == dim else f"x{i}" for i in range(len(x.factors)))
    shape = Shape.of(x.dtype, [(part if i == dim else f,) for i, f in enumerate(x.factors)])
    attributes = {name: statics[name] for name in ("dim", "start", "length")}
    return Typing(shape, Signature((labels,), labels, linear=((0,),)), attributes)


def _unflatten(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    """Statics: `dim`; `parts`, the factors that it is made of, major to minor."""
    [x] = shapes
    dim = len(x.factors) - 1 if statics["dim"] is UNKNOWN else int(statics["dim"])
    parts = (Factor("G", None), Factor("E", None)) if statics["parts"] is UNKNOWN else tuple(statics["parts"])
    whole, sizes = x.factors[dim], [part.size for part in parts]
    known = [n for n in sizes if n is not None]
    if whole.size is not None and len(known) == len(sizes) and math.prod(known) != whole.size:
        raise Mismatch(0, f"`{whole.name}` is {whole.size}, and {' * '.join(f'{p.name} {p.size}' for p in parts)} make {math.prod(known)}")
    labels = tuple(None if i == dim else f"x{i}" for i in range(len(x.factors)))
    shape = Shape.of(x.dtype, [(f,) for f in (*x.factors[:dim], *parts, *x.factors[dim + 1 :])])
    signature = Signature((labels,), (*labels[:dim], *[None] * len(parts), *labels[dim + 1 :]), linear=((0,),))
    return Typing(shape, signature, {"dim": dim, "sizes": tuple(UNKNOWN if n is None else n for n in sizes)})


FUNCTIONS: Mapping[str, Builtin] = {
    "einsum": Builtin(("x", "y"), _einsum, ("[T, H, E]", "[H, E, C]"), {"equation": ...}, leading=("equation",)),
    "slice": Builtin(("x",), _slice, ("[T, H, E]",), {"dim": ..., "start": ..., "length": ..., "part": ...}),
    "unflatten": Builtin(("x",), _unflatten, ("[T, K, F]",), {"dim": ..., "parts": ...}),
}
