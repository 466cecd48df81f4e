"""docs/rules.md: the placement rules of every function, as they follow from its signature."""

from __future__ import annotations

import re

from tsc.mesh import Axis, Mesh
from tsc.signatures import rules
from tsc.static import UNKNOWN
from tsc.stdlib import BUILTINS
from tsc.types import SPLITTABLE, AxisPlacement, Factor, Shape

_MESH = Mesh((Axis("a", None),))
_HEAD = """# Placement rules

Written by `tsc rules`; a test compares. A function is computed rank by rank from these placements of its operands, on one axis `a`,
and what the ranks have then is the result's placement; on several axes any combination of rules. Each follows from the signature
(`tsc/tsc/functions/`), and a brute-force oracle (`tests/language/test_signatures.py`) tries every placement of every function on 2 and 3
ranks: none of these is unsound, and any sound one that is not here is left out there with its reason.

A rule that splits a factor stands for the like rules of its other factors, except where they are shown apart: `x` of `linear` may have
further dimensions in place of `T`, and `rms_norm`, `rope` and the elementwise functions further ones in place of `K`, `F`, `V` or `D`.
"""


def page() -> str:
    """The page; functions with equal rules share an entry."""
    entries: dict[tuple[str, ...], list[str]] = {}
    for name in BUILTINS:
        entries.setdefault(_lines(name), []).append(_head(name))
    blocks = ["\n".join([", ".join(heads), *(f"    {line}" for line in lines)]) for lines, heads in entries.items()]
    return "\n".join([_HEAD, "```", "\n\n".join(blocks), "```", ""])


def _lines(name: str) -> tuple[str, ...]:
    builtin = BUILTINS[name]
    operands = [_shape(text) for text in builtin.shown]
    typing = builtin.infer(operands, {p: UNKNOWN if default is ... else default for p, default in builtin.statics.items()})
    shapes = [*operands, typing.shape]
    lines = []
    for rule in rules(typing.signature):
        places: list[AxisPlacement] = [*rule.operands, rule.result]
        if not any(_is_fixed(s, p) for s, p in zip(shapes, places, strict=True)):
            texts = [s.text(_MESH, (p,)) for s, p in zip(shapes, places, strict=True)]
            lines.append(f"{', '.join(texts[:-1])} -> {texts[-1]}")
    return tuple(lines)


def _is_fixed(shape: Shape, place: AxisPlacement) -> bool:
    """Whether the factor that is split is one of a step's extents that no axis may split."""
    return isinstance(place, int) and shape.factors[place].is_dynamic and shape.factors[place].name not in SPLITTABLE


def _head(name: str) -> str:
    builtin = BUILTINS[name]
    statics = [p if default is ... else f"{p} = {'none' if default is None else default}" for p, default in builtin.statics.items()]
    tensors = [f"{t} = none" if i >= builtin.fewest else t for i, t in enumerate(builtin.tensors)]
    return f"{name}({', '.join([*tensors, *statics])})"


def _shape(text: str) -> Shape:
    dtype, inside = text.rstrip("]").split("[", 1)
    groups = [g.strip("()").split(", ") for g in re.findall(r"\([^)]*\)|[^, ]+", inside)]
    return Shape.of(dtype, [[Factor(n, int(n) if n.isdigit() else None) for n in g] for g in groups])
