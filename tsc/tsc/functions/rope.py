"""Rotary position embedding and its scalings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, flag, labels_of, number, want_rank
from tsc.signatures import Signature
from tsc.static import UNKNOWN
from tsc.types import Shape


def _rope(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    x, positions = shapes
    want_rank(shapes, 0, 2, "`rope`")
    if positions.dtype != "i32" or len(positions.factors) != 1 or not positions.factors[0].agrees(x.factors[0]):
        raise Mismatch(1, f"`rope` takes one i32 position for each row of {x.text()}, got {positions.text()}")
    labels = labels_of(x, "x", blocked=1)
    kind, parameters = _rope_scaling(statics["scaling"])
    attributes = {
        "theta": number(statics, "theta", "rope"),
        "kind": kind,
        "parameters": parameters,
        "interleaved": flag(statics, "interleaved", "rope"),
    }
    return Typing(x, Signature((labels, (labels[0],)), labels, linear=((0,),)), attributes)


ROPE_SCALINGS: Mapping[Any, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""The config keys that each kind needs, in the order of the op's `parameters`; yarn has more, with defaults."""


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
    parameters = tuple(float(scaling[k]) for k in keys)
    return str(kind), (*parameters, *_yarn(scaling, parameters[0])) if kind == "yarn" else parameters


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
    "rope": Builtin(("x", "positions"), _rope, ("[T, K, E]", "i32[T]"), {"theta": 10000.0, "scaling": None, "interleaved": False}),
}
