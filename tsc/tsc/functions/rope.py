"""Rotary position embedding and its scalings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, flag, labels_of, number, want_rank
from tsc.signatures import Signature
from tsc.static import UNKNOWN
from tsc.types import Factor, Shape


def _rope(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, positions = shapes
    want_rank(shapes, 0, 2, "`rope`")
    if positions.dtype != "i32" or len(positions.factors) != 1 or not positions.factors[0].agrees(x.factors[0]):
        raise Mismatch(1, f"`rope` takes one i32 position for each row of {x.text()}, got {positions.text()}")
    labels = labels_of(x, "x", blocked=1)
    theta, fraction = (number(statics, name, "rope") for name in ("theta", "fraction"))
    width = _turned(x.factors[-1], fraction)
    if "kind" in statics:  # a graph's node has been resolved
        kind, parameters = statics["kind"], statics["parameters"]
    else:
        kind, theta, parameters = _resolved(statics["scaling"], theta, width)
    attributes = {
        "theta": theta,
        "kind": kind,
        "parameters": parameters,
        "interleaved": flag(statics, "interleaved", "rope"),
        "fraction": fraction,
    }
    return Typing(x, Signature((labels, (labels[0],)), labels, linear=((0,),)), attributes)


def _turned(of: Factor, fraction: Any) -> int | None:
    """How many elements of a vector turn."""
    if of.size is None or fraction is UNKNOWN:
        return None
    width = int(of.size * fraction)
    if not 0 < width <= of.size or width % 2:
        raise Mismatch(None, f"`rope` turns pairs, and a fraction of {fraction} of `{of.name}`, {of.size}, is {width} elements")
    return width


ROPE_SCALINGS: Mapping[Any, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings", "short_factor", "long_factor"),
    "dynamic": ("factor", "original_max_position_embeddings"),
}
"""The config keys that each kind needs, in the order of the op's `parameters`; yarn has more, with defaults. The last two depend on the
longest sequence, and are resolved: longrope to its magnitude and the factors that hold, dynamic to another theta."""


def _resolved(scaling: Any, theta: Any, width: int | None) -> tuple[str, Any, tuple[float, ...]]:
    """Kind, theta and parameters of the op."""
    if scaling is None or scaling is UNKNOWN:
        return "default", theta, ()
    if not isinstance(scaling, dict):
        raise Mismatch(None, f"`scaling` is the config's rope_scaling object or none, got {scaling!r}")
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    keys = ROPE_SCALINGS.get(kind)
    if keys is None:
        raise Mismatch(None, f"`rope` knows the scalings {', '.join(ROPE_SCALINGS)}, not {kind!r}")
    lacking = [k for k in keys if k not in scaling]
    if lacking:
        raise Mismatch(None, f"{kind} rope scaling needs {', '.join(lacking)} in the config")
    if kind == "longrope":
        return kind, theta, _longrope(scaling, width)
    parameters = tuple(float(scaling[k]) for k in keys)
    match kind:
        case "dynamic":
            factor, original = parameters
            return "default", _dynamic_theta(theta, factor, original, scaling.get(LONGEST), width), ()
        case "yarn":
            return kind, theta, (*parameters, *_yarn(scaling, parameters[0]))
        case _:
            return kind, theta, parameters


LONGEST = "longest_sequence"
"""The key of a scaling under which the compiler says how long a sequence may be."""


def _longrope(scaling: Mapping[str, Any], width: int | None) -> tuple[float, ...]:
    """What cosines and sines are multiplied by, and for each pair what its frequency is divided by. The defaults are those of
    transformers."""
    factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    chosen = "long_factor" if float(scaling.get(LONGEST) or original) > original else "short_factor"
    divisors = scaling[chosen]
    if width is not None and len(divisors) != width // 2:
        raise Mismatch(None, f"`{chosen}` of longrope has a number for each of {width // 2} pairs, and these are {len(divisors)}")
    return (float(magnitude), *map(float, divisors))


def _dynamic_theta(theta: Any, factor: float, original: float, longest: float | None, width: int | None) -> Any:
    """The base that stretches the waves over the longest sequence, where that is longer than those of the training."""
    if theta is UNKNOWN or width is None or longest is None or longest <= original:
        return theta
    return theta * (factor * longest / original - (factor - 1)) ** (width / (width - 2))


def _yarn(scaling: Mapping[str, Any], factor: float) -> tuple[float, ...]:
    """What yarn has beside the factor and the original length: the fast and the slow bound in turns, the factor of cosines and sines,
    and whether the bounds are rounded outwards to whole dimensions. The defaults are those of transformers."""

    def growth(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        one, all_ = scaling.get("mscale"), scaling.get("mscale_all_dim")
        magnitude = growth(one) / growth(all_) if one and all_ else growth(1.0)
    bounds = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)
    return (*bounds, float(magnitude), float(scaling.get("truncate", True)))


FUNCTIONS: Mapping[str, Builtin] = {
    "rope": Builtin(
        ("x", "positions"), _rope, ("[T, K, E]", "i32[T]"), {"theta": 10000.0, "scaling": None, "interleaved": False, "fraction": 1.0}
    ),
}
