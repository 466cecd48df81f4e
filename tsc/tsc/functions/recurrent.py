"""Recurrences over a sequence's tokens, with a state for each sequence: a short causal convolution, and the gated delta rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, labels_of, names_of, number
from tsc.signatures import Signature
from tsc.types import Factor, Shape


def _short_conv(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, w, state = shapes
    channels = x.factors[1:]
    if len(channels) < 1 or x.factors[0].name != "T":
        raise Mismatch(0, f"`short_conv` takes rows of channels, [T, ...], got {x.text()}")
    if (
        w.dtype != x.dtype
        or len(w.factors) != len(channels) + 2
        or not _agree(w.factors[:-2], channels)
        or w.factors[-2].size not in (1, None)
    ):
        raise Mismatch(1, f"`short_conv` takes some taps of each channel, [{names_of(channels)}, 1, W], got {w.text()}")
    if state.dtype != "f32" or len(state.factors) != len(channels) + 2 or not _agree(state.factors[2:], channels):
        raise Mismatch(2, f"its state has the inputs before the taps' last, f32[W - 1, {_listed(channels)}], got {state.text()}")
    taps, past = w.factors[-1].size, state.factors[1].size
    if taps is not None and past is not None and past != taps - 1:
        raise Mismatch(2, f"`short_conv` with {taps} taps looks back at {taps - 1} inputs, and its state has {past}")
    inner = tuple(f"c{i}" for i in range(len(channels)))
    operands = (("t", *inner), (*inner, None, None), ("t", None, *inner))
    return Typing(x, Signature(operands, ("t", *inner), linear=((1,),)))


def _decay(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, rate, bias = shapes
    for operand, of in ((1, rate), (2, bias)):
        if of.dtype != "f32" or not _agree(of.factors, x.factors[1:]):
            raise Mismatch(operand, f"`decay` takes a number for each of {_listed(x.factors[1:])}, in f32, got {of.text()}")
    labels = labels_of(x, "x")
    return Typing(Shape.of("f32", [(f,) for f in x.factors]), Signature((labels, labels[1:], labels[1:]), labels))


def _gated_delta(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    q, k, v, decay, beta, state = shapes
    for operand, of in ((0, q), (1, k)):
        if len(of.factors) != 3 or len(v.factors) != 4 or not of.agrees(q) or not _agree(of.factors[:2], v.factors[:2]):
            text = f"`gated_delta` takes queries and keys [T, K, A] and values [T, K, G, E], got {of.text()} and {v.text()}"
            raise Mismatch(operand, text)
    for operand, of, dtype in ((3, decay, "f32"), (4, beta, v.dtype)):
        if of.dtype != dtype or not _agree(of.factors, v.factors[:3]):
            raise Mismatch(
                operand, f"`gated_delta` takes a number for each head of the values, {dtype}[{_listed(v.factors[:3])}], got {of.text()}"
            )
    wanted = (*v.factors[1:3], q.factors[2], v.factors[3])
    if state.dtype != "f32" or not _agree(state.factors[1:], wanted):
        raise Mismatch(5, f"its state has a matrix for each head of the values, f32[{_listed(wanted)}], got {state.text()}")
    rows, heads = ("t", "k", None), ("t", "k", "g")
    operands = (rows, rows, (*heads, "e"), heads, heads, (*heads, None, "e"))
    attributes = {name: number(statics, name, "gated_delta") for name in ("scale", "eps")}
    return Typing(v, Signature(operands, (*heads, "e")), attributes)


def _agree(found: Sequence[Factor], wanted: Sequence[Factor]) -> bool:
    return len(found) == len(wanted) and all(a.agrees(b) for a, b in zip(found, wanted, strict=True))


def _listed(factors: Sequence[Factor]) -> str:
    return ", ".join(f.name for f in factors)


FUNCTIONS: Mapping[str, Builtin] = {
    "short_conv": Builtin(("x", "w", "state"), _short_conv, ("[T, K, E]", "[(K, E), 1, W]", "f32[pages, P, K, E]"), stateful=True),
    "decay": Builtin(("x", "rate", "bias"), _decay, ("[T, K, G]", "f32[(K, G)]", "f32[(K, G)]")),
    "gated_delta": Builtin(
        ("q", "k", "v", "decay", "beta", "state"),
        _gated_delta,
        ("[T, K, A]", "[T, K, A]", "[T, K, G, E]", "f32[T, K, G]", "[T, K, G]", "f32[pages, K, G, A, E]"),
        {"scale": ..., "eps": 1e-6},
        stateful=True,
    ),
}
