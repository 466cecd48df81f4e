"""The functions of the language: for each, the shape of its result and its signature from the shapes of its operands.

One entry a function; a new op is an entry here, a reference kernel of the same name, and a page in the docs.
"""

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
    """`tensors` are its tensor parameters in order, `statics` its static ones with defaults (`...`: none)."""

    tensors: tuple[str, ...]
    infer: Infer
    statics: Mapping[str, Any] = field(default_factory=dict)


def _labels(shape: Shape, prefix: str, blocked: int = 0) -> tuple[Label, ...]:
    """One label a factor, the last `blocked` ones unsplittable."""
    keep = len(shape.factors) - blocked
    return tuple(f"{prefix}{i}" if i < keep else None for i in range(len(shape.factors)))


def _want_rank(shapes: Sequence[Shape], operand: int, rank: int, what: str) -> None:
    if len(shapes[operand].factors) < rank:
        raise Mismatch(operand, f"{what} needs at least {rank} dimensions, got {shapes[operand].text()}")


def _same(shapes: Sequence[Shape], what: str) -> None:
    if not shapes[0].agrees(shapes[1]):
        raise Mismatch(1, f"{what} needs two values of one type, got {shapes[0].text()} and {shapes[1].text()}")


def _number(statics: Mapping[str, Any], name: str, op: str) -> Any:
    value = statics[name]
    if value is UNKNOWN:
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Mismatch(None, f"`{name}` of `{op}` is a number, and this is {value!r}")
    return float(value)


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
    x, w = shapes
    dimensions = w.dimensions()
    if len(dimensions) != 2:
        raise Mismatch(1, f"`linear` takes a weight with two dimensions (out, in), got {w.text()}")
    out, inner = dimensions
    tail = x.factors[len(x.factors) - len(inner) :] if len(x.factors) >= len(inner) else ()
    if len(tail) != len(inner) or not all(a.agrees(b) for a, b in zip(tail, inner, strict=True)):
        raise Mismatch(
            0, f"`linear` contracts the last dimension of its weight, {_names(inner)}, and the value {x.text()} does not end in that"
        )
    if x.dtype != w.dtype:
        raise Mismatch(0, f"`linear` needs one element type, got {x.text()} and {w.text()}")
    lead = [f"x{i}" for i in range(len(x.factors) - len(inner))]
    inside = [f"i{i}" for i in range(len(inner))]
    outside = [f"o{i}" for i in range(len(out))]
    shape = Shape.of(x.dtype, [(f,) for f in (*x.factors[: len(lead)], *out)])
    return Typing(
        shape,
        Signature(((*lead, *inside), (*outside, *inside)), (*lead, *outside), frozenset(inside), ((0,), (1,))),
        {"contracted": len(inner)},
    )


def _rms_norm(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, w = shapes
    if len(w.factors) != 1 or not x.factors or not w.factors[0].agrees(x.factors[-1]):
        raise Mismatch(1, f"the norm's weight has the last dimension of the value {x.text()}, got {w.text()}")
    labels = _labels(x, "x", blocked=1)
    attributes = {name: _number(statics, name, "rms_norm") for name in ("eps", "offset")}
    return Typing(x, Signature((labels, (None,)), labels), attributes)


def _rope(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, positions = shapes
    _want_rank(shapes, 0, 2, "`rope`")
    if positions.dtype != "i32" or len(positions.factors) != 1 or not positions.factors[0].agrees(x.factors[0]):
        raise Mismatch(1, f"`rope` takes one i32 position for each row of {x.text()}, got {positions.text()}")
    labels = _labels(x, "x", blocked=1)
    kind, parameters = _rope_scaling(statics["scaling"])
    attributes = {"theta": _number(statics, "theta", "rope"), "kind": kind, "parameters": parameters}
    return Typing(x, Signature((labels, (labels[0],)), labels, linear=((0,),)), attributes)


ROPE_SCALINGS: Mapping[Any, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The config keys that each kind needs, in the order of the op's `parameters`."""


def _rope_scaling(scaling: Any) -> tuple[str, tuple[float, ...]]:
    if scaling is None or scaling is UNKNOWN:
        return "default", ()
    if not isinstance(scaling, dict):
        raise Mismatch(None, f"`scaling` is the config's rope_scaling object or none, got {scaling!r}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    keys = ROPE_SCALINGS.get(kind)
    if keys is None:
        raise Mismatch(None, f"`rope` knows the scalings {', '.join(ROPE_SCALINGS)}, not {kind!r}")
    lacking = [k for k in keys if k not in scaling]
    if lacking:
        raise Mismatch(None, f"{kind} rope scaling needs {', '.join(lacking)} in the config")
    return str(kind), tuple(float(scaling[k]) for k in keys)


def _pointwise(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    labels = _labels(shapes[0], "x")
    return Typing(shapes[0], Signature((labels,), labels))


def _softcap(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    labels = _labels(shapes[0], "x")
    return Typing(shapes[0], Signature((labels,), labels), {"cap": _number(statics, "cap", "softcap")})


def _scale(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    labels = _labels(shapes[0], "x")
    return Typing(shapes[0], Signature((labels,), labels, linear=((0,),)), {"factor": _number(statics, "factor", "scale")})


def _add(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    _same(shapes, "`+`")
    labels = _labels(shapes[0], "x")
    return Typing(shapes[0], Signature((labels, labels), labels, linear=((0, 1),)))


def _mul(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    _same(shapes, "`*`")
    labels = _labels(shapes[0], "x")
    return Typing(shapes[0], Signature((labels, labels), labels, linear=((0,), (1,))))


def _take_rows(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, rows = shapes
    if rows.dtype != "i32" or len(rows.factors) != 1:
        raise Mismatch(1, f"rows are taken by an i32 vector, got {rows.text()}")
    tail = tuple(f"x{i}" for i in range(1, len(x.factors)))
    shape = Shape.of(x.dtype, [rows.factors[:1], *((f,) for f in x.factors[1:])])
    return Typing(shape, Signature(((None, *tail), ("s",)), ("s", *tail), linear=((0,),)))


def _cache_append(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    cache, k, v = shapes
    wanted = cache.factors[1:]
    for operand, x in ((1, k), (2, v)):
        if len(x.factors) != len(wanted) + 1 or not all(a.agrees(b) for a, b in zip(x.factors[1:], wanted, strict=True)):
            raise Mismatch(operand, f"the cache holds {_names(wanted)} for each token, got {x.text()}")
    labels = ("k", None)
    return Typing(cache, Signature(((None, *labels), ("t", *labels), ("t", *labels)), (None, *labels)))


def _attention(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    q, cache = shapes
    if len(q.factors) != 4 or len(cache.factors) != 3:
        raise Mismatch(0, f"`attention` takes queries [T, K, G, E] and a cache [2, K, E], got {q.text()} and {cache.text()}")
    if not (q.factors[1].agrees(cache.factors[1]) and q.factors[3].agrees(cache.factors[2])):
        raise Mismatch(0, f"the queries' K/V heads and width must be the cache's, got {q.text()} and {cache.text()}")
    signature = Signature(((None, "k", "g", None), (None, "k", None)), (None, "k", "g", None))
    attributes = {name: _number(statics, name, "attention") for name in ("scale", "softcap")}
    return Typing(q, signature, attributes)


def _names(factors: Sequence[Factor]) -> str:
    names = ", ".join(f.name for f in factors)
    return f"({names})" if len(factors) > 1 else names


BUILTINS: Mapping[str, Builtin] = {
    "embedding": Builtin(("ids", "table"), _embedding),
    "linear": Builtin(("x", "w"), _linear),
    "rms_norm": Builtin(("x", "w"), _rms_norm, {"eps": ..., "offset": 0.0}),
    "rope": Builtin(("x", "positions"), _rope, {"theta": 10000.0, "scaling": None}),
    "silu": Builtin(("x",), _pointwise),
    "gelu": Builtin(("x",), _pointwise),
    "gelu_tanh": Builtin(("x",), _pointwise),
    "softcap": Builtin(("x",), _softcap, {"cap": ...}),
    "scale": Builtin(("x",), _scale, {"factor": ...}),
    "add": Builtin(("x", "y"), _add),
    "mul": Builtin(("x", "y"), _mul),
    "take_rows": Builtin(("x", "rows"), _take_rows),
    "cache_append": Builtin(("cache", "k", "v"), _cache_append),
    "attention": Builtin(("q", "cache"), _attention, {"scale": ..., "softcap": 0.0}),
}
