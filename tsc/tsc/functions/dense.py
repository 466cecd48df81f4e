"""Embeddings, matmuls, norms and elementwise functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, labels_of, names_of, number, same_type
from tsc.signatures import Label, Signature
from tsc.types import Shape

Labels = tuple[Label, ...]


def _embedding(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    ids, table = shapes
    if ids.dtype != "i32":
        raise Mismatch(0, f"token ids are i32, got {ids.text()}")
    if len(table.factors) != 2:
        raise Mismatch(1, f"an embedding table has the dimensions (vocabulary, width), got {table.text()}")
    return Typing(
        Shape.of(table.dtype, [*((f,) for f in ids.factors), (table.factors[1],)]),
        Signature((("t",), ("v", "d")), ("t", "d"), frozenset({"v"}), ((1,),)),
    )


def _linear(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, w = shapes[:2]
    dimensions = w.dimensions()
    if len(dimensions) != 2:
        raise Mismatch(1, f"`linear` takes a weight with two dimensions (out, in), got {w.text()}")
    out, inner = dimensions
    tail = x.factors[len(x.factors) - len(inner) :] if len(x.factors) >= len(inner) else ()
    if len(tail) != len(inner) or not all(a.agrees(b) for a, b in zip(tail, inner, strict=True)):
        raise Mismatch(
            0, f"`linear` contracts the last dimension of its weight, {names_of(inner)}, and the value {x.text()} does not end in that"
        )
    if x.dtype != w.dtype:
        raise Mismatch(0, f"`linear` needs one element type, got {x.text()} and {w.text()}")
    if len(shapes) == 3 and not shapes[2].agrees(Shape.of(w.dtype, [(f,) for f in out])):
        raise Mismatch(2, f"the bias has the first dimension of the weight, {names_of(out)}, got {shapes[2].text()}")
    lead = [f"x{i}" for i in range(len(x.factors) - len(inner))]
    inside = [f"i{i}" for i in range(len(inner))]
    outside = [f"o{i}" for i in range(len(out))]
    shape = Shape.of(x.dtype, [(f,) for f in (*x.factors[: len(lead)], *out)])
    return Typing(
        shape,
        _product(len(shapes), (*lead, *inside), (*outside, *inside), tuple(outside), (*lead, *outside)),
        {"contracted": len(inner)},
    )


def _product(operands: int, x: Labels, w: Labels, bias: Labels, result: Labels) -> Signature:
    """Of the two or, with a bias, three operands of `linear`."""
    summed = frozenset(label for label in x if label is not None and label not in result)
    if operands == 2:
        return Signature((x, w), result, summed, ((0,), (1,)))
    return Signature((x, w, bias), result, summed, ((0, 2), (1, 2)), added=frozenset({2}))


def _rms_norm(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, w = shapes
    if len(w.factors) != 1 or not x.factors or not w.factors[0].agrees(x.factors[-1]):
        raise Mismatch(1, f"the norm's weight has the last dimension of the value {x.text()}, got {w.text()}")
    labels = labels_of(x, "x", blocked=1)
    attributes = {name: number(statics, name, "rms_norm") for name in ("eps", "offset")}
    return Typing(x, Signature((labels, (None,)), labels), attributes)


def _pointwise(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    labels = labels_of(shapes[0], "x")
    return Typing(shapes[0], Signature((labels,), labels))


def _softcap(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    labels = labels_of(shapes[0], "x")
    return Typing(shapes[0], Signature((labels,), labels), {"cap": number(statics, "cap", "softcap")})


def _scale(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    labels = labels_of(shapes[0], "x")
    return Typing(shapes[0], Signature((labels,), labels, linear=((0,),)), {"factor": number(statics, "factor", "scale")})


def _add(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    same_type(shapes, "`+`")
    labels = labels_of(shapes[0], "x")
    return Typing(shapes[0], Signature((labels, labels), labels, linear=((0, 1),)))


def _mul(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    same_type(shapes, "`*`")
    labels = labels_of(shapes[0], "x")
    return Typing(shapes[0], Signature((labels, labels), labels, linear=((0,), (1,))))


def _scale_rows(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, factors = shapes
    lead = (*x.factors[:-1],)
    if len(x.factors) < 2 or factors.dtype != x.dtype or [f.name for f in factors.factors] != [*(f.name for f in lead), "1"]:
        raise Mismatch(1, f"each row of {x.text()} has one factor, [{', '.join(f.name for f in lead)}, 1], got {factors.text()}")
    labels = labels_of(x, "x")
    return Typing(x, Signature((labels, (*labels[:-1], None)), labels, linear=((0,), (1,))))


def _take_rows(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, rows = shapes
    if rows.dtype != "i32" or len(rows.factors) != 1:
        raise Mismatch(1, f"rows are taken by an i32 vector, got {rows.text()}")
    if rows.factors[0].name != "S":  # ids and positions count other things than a step's rows
        raise Mismatch(1, f"rows are taken for each sequence, by `last`, i32[S], got {rows.text()}")
    tail = tuple(f"x{i}" for i in range(1, len(x.factors)))
    shape = Shape.of(x.dtype, [rows.factors[:1], *((f,) for f in x.factors[1:])])
    if len(tail) == 1:  # of tokens that ranks share out each has some of the rows, and zeros for the others'
        return Typing(shape, Signature((("t", *tail), ("s",)), ("s", *tail), frozenset({"t"}), ((0,),)))
    return Typing(shape, Signature(((None, *tail), ("s",)), ("s", *tail), linear=((0,),)))


FUNCTIONS: Mapping[str, Builtin] = {
    "embedding": Builtin(("ids", "table"), _embedding, ("i32[T]", "[V, D]")),
    "linear": Builtin(("x", "w", "bias"), _linear, ("[T, D]", "[(K, E), D]", "[(K, E)]"), optional=1),
    "rms_norm": Builtin(("x", "w"), _rms_norm, ("[T, K, E]", "[E]"), {"eps": ..., "offset": 0.0}),
    "silu": Builtin(("x",), _pointwise, ("[T, F]",)),
    "sigmoid": Builtin(("x",), _pointwise, ("[T, F]",)),
    "gelu": Builtin(("x",), _pointwise, ("[T, F]",)),
    "gelu_tanh": Builtin(("x",), _pointwise, ("[T, F]",)),
    "softcap": Builtin(("x",), _softcap, ("[S, V]",), {"cap": ...}),
    "scale": Builtin(("x",), _scale, ("[T, D]",), {"factor": ...}),
    "add": Builtin(("x", "y"), _add, ("[T, D]", "[T, D]")),
    "mul": Builtin(("x", "y"), _mul, ("[T, D]", "[T, D]")),
    "scale_rows": Builtin(("x", "factors"), _scale_rows, ("[T, D]", "[T, 1]")),
    "take_rows": Builtin(("x", "rows"), _take_rows, ("[T, D]", "i32[S]")),
}
