"""Mixtures of experts: which experts a token goes to, and what they make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, choice, count, flag, number
from tsc.signatures import Label, Signature
from tsc.types import Shape


def _route(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    logits = shapes[0]
    if len(logits.factors) != 2:
        raise Mismatch(0, f"`route` takes a score for each token and expert, [T, N], got {logits.text()}")
    experts = logits.factors[1]
    if len(shapes) == 2 and (len(shapes[1].factors) != 1 or not shapes[1].factors[0].agrees(experts)):
        raise Mismatch(1, f"the bias has a number for each expert, [{experts.name}], got {shapes[1].text()}")
    attributes = {
        "top_k": count(statics, "top_k", "route"),
        "score": choice(statics, "score", "route", ("softmax", "sigmoid")),
        "normalize": flag(statics, "normalize", "route"),
        "scale": number(statics, "scale", "route"),
        "groups": count(statics, "groups", "route"),
        "top_groups": count(statics, "top_groups", "route"),
        "group_best": count(statics, "group_best", "route"),
    }
    _check_counts(experts.size, {n: v for n, v in attributes.items() if isinstance(v, int)})
    # a token's experts are ranked among all of them
    operands = (("t", None), (None,))[: len(shapes)]
    return Typing(logits, Signature(operands, ("t", None)), attributes)


def _check_counts(experts: int | None, known: Mapping[str, int]) -> None:
    """Of the counts that are known."""
    if experts is not None and known.get("top_k", 1) > experts:
        raise Mismatch(None, f"`route` picks {known['top_k']} of {experts} experts")
    if experts is not None and experts % known.get("groups", 1):
        raise Mismatch(None, f"`route` cannot divide {experts} experts into {known['groups']} groups")
    if "groups" in known and known.get("top_groups", 1) > known["groups"]:
        raise Mismatch(None, f"`route` picks {known['top_groups']} of {known['groups']} groups")


def _experts(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, weights, gate = shapes[:3]
    if len(x.factors) != 2 or len(weights.factors) != 2 or not weights.factors[0].agrees(x.factors[0]):
        text = f"got {x.text()} and {weights.text()}"
        raise Mismatch(1, f"`experts` takes values [T, D] and a weight for each token and expert [T, N], {text}")
    if len(gate.factors) != 3:
        raise Mismatch(2, f"the experts' weights are stacked, [N, F, D], got {gate.text()}")
    if len(shapes) not in (5, 8):
        raise Mismatch(5, "`experts` takes a bias of `gate`, of `up` and of `down`, or none of them")
    stack, inner, width = weights.factors[1], gate.factors[1], x.factors[1]
    wanted = {
        "gate": (stack, inner, width),
        "up": (stack, inner, width),
        "down": (stack, width, inner),
        "gate_bias": (stack, inner),
        "up_bias": (stack, inner),
        "down_bias": (stack, width),
    }
    for operand, (name, factors) in enumerate(list(wanted.items())[: len(shapes) - 2], start=2):
        shape = Shape.of(x.dtype, [(f,) for f in factors])
        if not shapes[operand].agrees(shape) or shapes[operand].groups != shape.groups:
            raise Mismatch(operand, f"`{name}` of `experts` is {shape.text()} here, got {shapes[operand].text()}")
    attributes = {name: number(statics, name, "experts") for name in ("alpha", "limit", "offset")}
    return Typing(x, _experts_signature(len(shapes) == 8, attributes), attributes)


def _experts_signature(has_biases: bool, attributes: Mapping[str, Any]) -> Signature:
    """Linear in the routing weights, in `down` with its bias, and where what is gated is neither bounded nor shifted in `up` with both."""
    operands: tuple[tuple[Label, ...], ...] = (("t", None), ("t", "n"), ("n", "f", None), ("n", "f", None), ("n", "d", "f"))
    linear: list[tuple[int, ...]] = [(1,), (4,)]
    up: tuple[int, ...] = (3,)
    if has_biases:
        operands = (*operands, ("n", "f"), ("n", "f"), ("n", "d"))
        linear, up = [(1,), (4, 7)], (3, 6, 7)
    if attributes["limit"] == attributes["offset"] == 0:
        linear.append(up)
    return Signature(operands, ("t", "d"), frozenset({"n", "f"}), tuple(linear), added=frozenset({7} if has_biases else ()))


FUNCTIONS: Mapping[str, Builtin] = {
    "route": Builtin(
        ("logits", "bias"),
        _route,
        ("[T, N]", "f32[N]"),
        {"top_k": ..., "score": "softmax", "normalize": True, "scale": 1.0, "groups": 1, "top_groups": 1, "group_best": 1},
        optional=1,
    ),
    "experts": Builtin(
        ("x", "weights", "gate", "up", "down", "gate_bias", "up_bias", "down_bias"),
        _experts,
        ("[T, D]", "[T, N]", "[N, F, D]", "[N, F, D]", "[N, D, F]", "[N, F]", "[N, F]", "[N, D]"),
        {"alpha": 1.0, "limit": 0.0, "offset": 0.0},
        optional=3,
    ),
}
