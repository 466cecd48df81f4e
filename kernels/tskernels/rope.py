"""Rotary position embedding: element i of the R that turn pairs with i + R/2; interleaved, 2i with 2i + 1. The others stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, cast

import torch
from torch import Tensor

from tskernels.cost import qk_rope_bound
from tskernels.dtypes import compute_dtype
from tskernels.normalization import rms_norm
from tskernels.registry import Call, kernel, op
from tskernels.rope_kinds import magnitude_of, turned_width

Key = tuple[int, float, str, tuple[float, ...]]


@lru_cache(maxsize=64)
def inverse_frequencies(width: int, theta: float, kind: str, parameters: tuple[float, ...]) -> Tensor:
    """f32[width / 2], radians per position. The order of operations is that of transformers, so the bits are."""
    frequencies = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
    match kind, parameters:
        case "default", ():
            return frequencies
        case "linear", (factor,):
            return frequencies / factor
        case "llama3", (factor, low, high, original):
            return _llama3(frequencies, factor, low, high, original)
        case "yarn", (factor, original, fast, slow, _, truncate):
            return _yarn(theta, width, factor, original, fast, slow, bool(truncate))
        case "longrope", (_, *divisors) if len(divisors) == width // 2:
            return 1.0 / (torch.tensor(divisors) * theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
    raise ValueError(
        f"rope of kind `{kind}` with parameters {list(parameters)}; known: default [], linear [factor], "
        "llama3 [factor, low, high, original length], yarn [factor, original length, fast, slow, magnitude, truncate], "
        "longrope [magnitude, a divisor for each pair]"
    )


def radians(call: Call) -> Sequence[float]:
    """What a kernel wants computed when a program is compiled: of each pair of a head that turns, for one position."""
    given = call.attributes
    width = cast("Any", given.get("width", call.operands[0].shape[-1]))
    theta, kind, parameters = (cast("Any", given[name]) for name in ("theta", "kind", "parameters"))
    turned = turned_width(width, cast("Any", given.get("fraction", 1.0)))
    found: Sequence[float] = inverse_frequencies(turned, float(theta), kind, tuple(map(float, parameters))).tolist()
    return found


def _yarn(theta: float, width: int, factor: float, original: float, fast: float, slow: float, truncate: bool) -> Tensor:
    def dimension(turns: float) -> float:
        """Where a wave makes that many turns in the original length."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    powers = theta ** (torch.arange(0, width, 2).float() / width)
    # Waves above the fast bound are kept, those below the slow one slowed by the factor, those between blended.
    ramp = ((torch.arange(width // 2).float() - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept


def _llama3(frequencies: Tensor, factor: float, low: float, high: float, original: float) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    # Long waves are slowed by the factor, short ones kept, those between blended.
    slowed = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * slowed / factor + blend * slowed
    between = ~(wavelengths < original / high) & ~(wavelengths > original / low)
    return torch.where(between, blended, slowed)


@op("ts::rope")
def rope(
    x: Tensor, positions: Tensor, theta: float, kind: str, parameters: Sequence[float], interleaved: bool, fraction: float = 1.0
) -> Tensor:
    """`x [T, ..., E]` rotated by `positions i32[T]`; angles, cosines and sines in f32; the result rounded once. Elements stay where they
    are, interleaved or not, and those after the first `fraction` of them as they are."""
    width = turned_width(x.shape[-1], fraction)
    frequencies = inverse_frequencies(width, float(theta), kind, tuple(map(float, parameters)))
    angles = positions.float()[:, None] * frequencies.to(x.device)
    angles = angles.view(x.shape[0], *[1] * (x.dim() - 2), width // 2)
    magnitude = magnitude_of(kind, parameters)
    cosine, sine = angles.cos() * magnitude, angles.sin() * magnitude
    wide = x[..., :width].to(compute_dtype(x.dtype))
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
    turned = first * cosine - second * sine, second * cosine + first * sine
    result = (torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)).to(x.dtype)
    return torch.cat((result, x[..., width:]), -1) if width < x.shape[-1] else result


@op("ts::qk_rope", cost=qk_rope_bound)
def qk_rope(
    x: Tensor,
    positions: Tensor,
    q_heads: int,
    k_heads: int,
    width: int,
    theta: float,
    kind: str,
    parameters: Sequence[float],
    interleaved: bool,
    fraction: float = 1.0,
) -> Tensor:
    """`x [T, O]`, whose rows begin with heads of queries and then of keys, of `width` elements each, to `[T, (q_heads+k_heads)*width]`:
    these, as `rope` turns them."""
    return rope(_heads(x, q_heads + k_heads, width), positions, theta, kind, parameters, interleaved, fraction).flatten(1)


@op("ts::qk_norm_rope", cost=qk_rope_bound)
def qk_norm_rope(
    x: Tensor,
    positions: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    q_heads: int,
    k_heads: int,
    width: int,
    eps: float,
    offset: float,
    theta: float,
    kind: str,
    parameters: Sequence[float],
    interleaved: bool,
    fraction: float = 1.0,
) -> Tensor:
    """As `qk_rope`, of each head's `rms_norm`, of queries with `q_norm [width]`, of keys with `k_norm [width]`."""
    heads = _heads(x, q_heads + k_heads, width)
    norms = rms_norm(heads[:, :q_heads], q_norm, eps, offset), rms_norm(heads[:, q_heads:], k_norm, eps, offset)
    return rope(torch.cat(norms, 1), positions, theta, kind, parameters, interleaved, fraction).flatten(1)


def _heads(x: Tensor, count: int, width: int) -> Tensor:
    return x[:, : count * width].view(x.shape[0], count, width)


_MAX_TABLE_ROWS: Final = 1 << 15  # 33 MB at E = 128; positions past it are rare and computed
_tables: dict[Key, Tensor] = {}


def _turns(key: Key, positions: Tensor) -> Tensor:
    """f32[N, 2, E]: cosines, and sines that carry the sign of their half."""
    angles = positions.float()[:, None] * inverse_frequencies(*key)
    magnitude = magnitude_of(key[2], key[3])
    cosine, sine = angles.cos() * magnitude, angles.sin() * magnitude
    return torch.stack((torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)), dim=1)


def _turns_cached(key: Key, positions: Tensor) -> Tensor:
    table = _tables.get(key)
    if table is not None:
        try:
            return table.index_select(0, positions)
        except IndexError:  # past the table: asking first would cost more than failing rarely
            pass
    last = int(positions.max())
    if last >= _MAX_TABLE_ROWS:
        return _turns(key, positions)
    # To a power of two, so that growth stays rare while a sequence does.
    table = _tables[key] = _turns(key, torch.arange(1 << max(10, last.bit_length())))
    return table.index_select(0, positions)


@kernel("ts::rope", name="torch")
def rope_torch(
    x: Tensor,
    positions: Tensor,
    theta: float,
    kind: str,
    parameters: Sequence[float],
    interleaved: bool,
    fraction: float = 1.0,
    *,
    out: Tensor,
) -> None:
    """Rows of a table of cosines and sines; `x * cos + swapped halves * signed sin` has the reference's very bits."""
    width = turned_width(x.shape[-1], fraction)
    if width < x.shape[-1]:
        out[..., width:] = x[..., width:]
        x, out = x[..., :width], out[..., :width]
    key = (width, float(theta), kind, tuple(map(float, parameters)))
    rows = _turns_cached(key, positions).view(x.shape[0], 2, *[1] * (x.dim() - 2), x.shape[-1])
    cosine, sine = rows.unbind(1)
    wide = x if x.dtype == compute_dtype(x.dtype) else x.float()
    if interleaved:  # the same table, its halves side by side; rare enough for copies of it
        cosine, sine = (t.view(*t.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2) for t in (cosine, sine))
        swapped = wide.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2).mul_(sine)
    else:
        swapped = wide.roll(x.shape[-1] // 2, -1).mul_(sine)
    if out.dtype == wide.dtype:
        torch.mul(wide, cosine, out=out).add_(swapped)
    else:
        torch.add(wide * cosine, swapped, out=out)
