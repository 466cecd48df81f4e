"""Rotary scaling out of a GGUF: the metadata's, or the kinds that have factors of each frequency, which are tensors."""

from __future__ import annotations

import math
import struct
from typing import Any

from tsc.checkpoint.errors import UNKNOWN_ROPE, failure
from tsc.checkpoint.gguf_header import GgufHeader, shortest

_F32 = 0
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_TOLERANCE = 1e-4
_LLAMA3 = (1.0, 4.0, 8192.0)  # low and high frequency factor and original length of every Llama 3


def rope_scaling(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` as config.json states it, or None. CompileError when the file's cannot be stated so."""
    kind = header.own("rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors:
        return _llama3(header, config)
    if _LONG in header.tensors:
        return _longrope(header, config)
    if kind in ("", "none"):
        factor = header.own("rope.scale_linear", 1.0)
        return None if factor in (0.0, 1.0) else {"rope_type": "linear", "factor": factor}
    factor = shortest(header.own("rope.scaling.factor", 1.0))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(header, factor)
    raise failure(UNKNOWN_ROPE, header.path, f"scales its rotary embedding by `{kind}`, which is not read from GGUF")


def _yarn(header: GgufHeader, factor: float) -> dict[str, Any]:
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": header.own("rope.scaling.original_context_length")}
    for key, name in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"), ("attention_factor", "yarn_attn_factor")):
        if (value := header.own(f"rope.scaling.{name}")) is not None:
            found[key] = shortest(value)
    if multiplier := header.own("rope.scaling.yarn_log_multiplier"):
        found["mscale"] = found["mscale_all_dim"] = shortest(multiplier) * 10  # of 0.1 * log(factor)
    return found


def _longrope(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    original = header.own("rope.scaling.original_context_length") or config["max_position_embeddings"]
    found: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": original}
    if (magnitude := header.own("rope.scaling.attn_factor")) is not None:
        found["attention_factor"] = shortest(magnitude)
    long, short = (list(map(shortest, _numbers(header, name))) for name in (_LONG, _SHORT))
    return found | {"factor": config["max_position_embeddings"] / original, "long_factor": long, "short_factor": short}


def _numbers(header: GgufHeader, name: str) -> tuple[float, ...]:
    """Of a small f32 tensor."""
    if (tensor := header.tensors.get(name)) is None:
        raise failure(UNKNOWN_ROPE, header.path, f"has no `{name}`")
    size = 4 * math.prod(tensor.shape)
    if tensor.type != _F32:
        raise failure(UNKNOWN_ROPE, header.path, f"has a `{name}` that is not f32")
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(size)
    if len(data) != size:
        raise failure(UNKNOWN_ROPE, header.path, f"is truncated: its `{name}` is not all there", "download it again")
    return struct.unpack(f"<{size // 4}f", data)


def _llama3(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any] | None:
    stated = _numbers(header, "rope_freqs.weight")
    if all(value == 1.0 for value in stated):
        return None
    rotated = 2 * len(stated)
    waves = [2 * math.pi * config["rope_theta"] ** (2 * i / rotated) for i in range(len(stated))]
    factor = max(stated)
    for low, high, length in (_LLAMA3, *_fit(stated, waves, factor)):
        made = [_divisor(wave, factor, low, high, length) for wave in waves]
        if all(math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(made, stated, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(length),
            }
    raise failure(UNKNOWN_ROPE, header.path, "has a `rope_freqs.weight` that no llama3 rope scaling gives")


def _divisor(wave: float, factor: float, low: float, high: float, length: float) -> float:
    if wave < length / high:
        return 1.0
    if wave > length / low:
        return factor
    smooth = (length / wave - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def _fit(stated: tuple[float, ...], waves: list[float], factor: float) -> list[tuple[float, float, float]]:
    # Inside the ramp the weight of the unscaled frequency is linear in 1/wave: slope = length/(high-low), and -low/(high-low) at 0.
    # Multiplying low, high and length by one number changes nothing, so low is taken to be 1.
    ramp = [(1 / w, (1 / v - 1 / factor) / (1 - 1 / factor)) for v, w in zip(stated, waves, strict=True) if 1.0001 < v < factor * 0.9999]
    if len(ramp) < 2:
        return []
    (x0, y0), (x1, y1) = ramp[0], ramp[-1]
    slope = (y1 - y0) / (x1 - x0)
    intercept = y0 - slope * x0
    if intercept >= 0:
        return []
    high = 1 - 1 / intercept
    return [(1.0, round(high, 4), float(round(slope * (high - 1))))]
