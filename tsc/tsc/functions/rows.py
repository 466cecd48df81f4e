"""Choosing and normalizing within rows, in steps that each have rules of their own.

A row that ranks share out is never gathered: its largest number, its sum and its best candidates are found on each rank and joined.
`argmax`, `top_k`, `softmax` and `rms_norm_rows` are written with these functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tsc.functions.common import Builtin, Mismatch, Typing, count, labels_of, number, want_rank
from tsc.signatures import Label, Signature
from tsc.static import UNKNOWN
from tsc.types import Factor, Shape


def _rows(shape: Shape, dtype: str) -> Shape:
    """A number of that type for each row."""
    return Shape.of(dtype, [(f,) for f in shape.factors[:-1]])


def _last(labels: Sequence[Label]) -> frozenset[str]:
    """The label of the last dimension, as a set."""
    return frozenset(label for label in labels[-1:] if label is not None)


def _max_key(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    want_rank(shapes, 0, 2, "`argmax`")
    labels = labels_of(shapes[0], "x")
    return Typing(_rows(shapes[0], "i64"), Signature((labels,), labels[:-1], maxed=_last(labels)))


def _top_keys(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    want_rank(shapes, 0, 2, "`top_k`")
    k, width = count(statics, "k", "top_k"), count(statics, "width", "top_k")
    whole = shapes[0].factors[-1]
    blocks = None if whole.size is None or width is UNKNOWN else whole.size // width
    if UNKNOWN not in (k, width) and k > width:
        raise Mismatch(None, f"`top_k` finds its {k} best in each rank's block of `{whole.name}`, and a block has {width}")
    labels = labels_of(shapes[0], "x")
    best = Factor("k", None) if k is UNKNOWN else Factor(str(k), k)
    factors = (*shapes[0].factors[:-1], Factor(f"{whole.name}.blocks", blocks), best)
    return Typing(Shape.of("i64", [(f,) for f in factors]), Signature((labels,), (*labels, None)), {"k": k, "width": width})


def _merge_keys(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    [x] = shapes
    want_rank(shapes, 0, 3, "`merge_keys`")
    labels = labels_of(x, "x", blocked=2)
    factors = (*x.factors[:-2], x.factors[-1])
    return Typing(Shape.of(x.dtype, [(f,) for f in factors]), Signature((labels,), (*labels[:-2], None)))


def _of_keys(dtype: str) -> Callable[[Sequence[Shape], Mapping[str, Any]], Typing]:
    def infer(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
        if shapes[0].dtype != "i64":
            raise Mismatch(0, f"this reads keys, i64, got {shapes[0].text()}")
        labels = labels_of(shapes[0], "x")
        return Typing(Shape.of(dtype, [(f,) for f in shapes[0].factors]), Signature((labels,), labels))

    return infer


def _row_max(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    want_rank(shapes, 0, 2, "`row_max`")
    labels = labels_of(shapes[0], "x")
    return Typing(_rows(shapes[0], "f32"), Signature((labels,), labels[:-1], maxed=_last(labels)))


def _row_sum(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    want_rank(shapes, 0, 2, "`row_sum`")
    labels = labels_of(shapes[0], "x")
    signature = Signature((labels,), labels[:-1], _last(labels), ((0,),))
    return Typing(_rows(shapes[0], "f32"), signature)


def _by_row(linear: bool) -> Callable[[Sequence[Shape], Mapping[str, Any]], Typing]:
    def infer(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
        x, of_row = shapes
        if not of_row.agrees(_rows(x, "f32")):
            raise Mismatch(1, f"each row of {x.text()} has one number, {_rows(x, 'f32').text()}, got {of_row.text()}")
        labels = labels_of(x, "x")
        shape = Shape.of("f32", [(f,) for f in x.factors])
        return Typing(shape, Signature((labels, labels[:-1]), labels, linear=((0,),) if linear else ()))

    return infer


def _row_squares(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    want_rank(shapes, 0, 2, "`rms_norm_rows`")
    labels = labels_of(shapes[0], "x")
    row = Shape.of("f32", [shapes[0].factors[:1]])
    return Typing(row, Signature((labels,), labels[:1], frozenset(label for label in labels[1:] if label is not None)))


def _rms_scale(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, _, w = shapes
    if len(w.factors) != len(x.factors) - 1 or not all(a.agrees(b) for a, b in zip(w.factors, x.factors[1:], strict=True)):
        raise Mismatch(2, f"the weight of `rms_norm_rows` has all dimensions of {x.text()} but the first, got {w.text()}")
    sizes = [f.size for f in w.factors]
    count = UNKNOWN if None in sizes else math.prod(size or 0 for size in sizes)
    labels = labels_of(x, "x")
    attributes = {name: number(statics, name, "rms_norm_rows") for name in ("eps", "offset")}
    return Typing(x, Signature((labels, labels[:1], labels[1:]), labels, linear=((0,),)), attributes | {"count": count})


FUNCTIONS: Mapping[str, Builtin] = {
    "max_key": Builtin(("x",), _max_key, ("[S, V]",)),
    "top_keys": Builtin(("x",), _top_keys, ("[S, V]",), {"k": ..., "width": ...}),
    "merge_keys": Builtin(("keys",), _merge_keys, ("i64[S, B, k]",)),
    "key_index": Builtin(("keys",), _of_keys("i32"), ("i64[S, k]",)),
    "key_value": Builtin(("keys",), _of_keys("f32"), ("i64[S, k]",)),
    "row_max": Builtin(("x",), _row_max, ("[S, V]",)),
    "row_sum": Builtin(("x",), _row_sum, ("f32[S, V]",)),
    "exp_minus": Builtin(("x", "of_row"), _by_row(linear=False), ("[S, V]", "f32[S]")),
    "divide_rows": Builtin(("x", "of_row"), _by_row(linear=True), ("f32[S, V]", "f32[S]")),
    "row_squares": Builtin(("x",), _row_squares, ("[T, K, E]",)),
    "rms_scale": Builtin(("x", "squares", "w"), _rms_scale, ("[T, K, E]", "f32[T]", "[K, E]"), {"eps": ..., "offset": 0.0}),
}


class Build(Protocol):
    """What a composite is written with."""

    def __call__(self, op: str, *operands: Any, **statics: Any) -> Any:
        """An operation on values that are there, or were built."""

    def block_width(self, x: Any) -> Any:
        """How much of `x`'s last dimension the rank with the least of it may have; UNKNOWN without sizes."""


@dataclass(frozen=True, slots=True)
class Composite:
    """A function of the language that is written with others. `tensors` and `statics`: as of a Builtin; `results`: how many values it
    gives, a name for each in a `let`."""

    tensors: tuple[str, ...]
    expand: Callable[..., Any]
    statics: Mapping[str, Any] = field(default_factory=dict)
    results: int = 1

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*self.tensors, *self.statics)


def _softmax(build: Build, x: Any) -> Any:
    weights = build("exp_minus", x, build("row_max", x))
    return build("divide_rows", weights, build("row_sum", weights))


def _argmax(build: Build, x: Any) -> Any:
    return build("key_index", build("max_key", x))


def _top_k(build: Build, x: Any, k: Any) -> tuple[Any, Any]:
    keys = build("merge_keys", build("top_keys", x, k=k, width=build.block_width(x)))
    return build("key_value", keys), build("key_index", keys)


def _rms_norm_rows(build: Build, x: Any, w: Any, **statics: Any) -> Any:
    return build("rms_scale", x, build("row_squares", x), w, **statics)


COMPOSITES: Mapping[str, Composite] = {
    "softmax": Composite(("x",), _softmax),
    "argmax": Composite(("x",), _argmax),
    "top_k": Composite(("x",), _top_k, {"k": ...}, results=2),
    "rms_norm_rows": Composite(("x", "w"), _rms_norm_rows, {"eps": ..., "offset": 0.0}),
}
