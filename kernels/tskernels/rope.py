"""Rotary position embedding, half-split: element i pairs with element i + E/2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, op

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
    raise ValueError(
        f"rope of kind `{kind}` with parameters {list(parameters)}; known: default [], linear [factor], "
        "llama3 [factor, low, high, original length]"
    )


def _llama3(frequencies: Tensor, factor: float, low: float, high: float, original: float) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    # Long waves are slowed by the factor, short ones kept, those between blended.
    slowed = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * slowed / factor + blend * slowed
    between = ~(wavelengths < original / high) & ~(wavelengths > original / low)
    return torch.where(between, blended, slowed)


@op("ts::rope")
def rope(x: Tensor, positions: Tensor, theta: float, kind: str, parameters: Sequence[float]) -> Tensor:
    """`x [T, ..., E]` rotated by `positions i32[T]`; angles, cosines and sines in f32; the result rounded once."""
    frequencies = inverse_frequencies(x.shape[-1], float(theta), kind, tuple(map(float, parameters)))
    angles = positions.float()[:, None] * frequencies
    angles = angles.view(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1] // 2)
    cosine, sine = angles.cos(), angles.sin()
    first, second = x.to(compute_dtype(x.dtype)).chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


_MAX_TABLE_ROWS: Final = 1 << 15  # 33 MB at E = 128; positions past it are rare and computed
_tables: dict[Key, Tensor] = {}


def _turns(key: Key, positions: Tensor) -> Tensor:
    """f32[N, 2, E]: cosines, and sines that carry the sign of their half."""
    angles = positions.float()[:, None] * inverse_frequencies(*key)
    cosine, sine = angles.cos(), angles.sin()
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
def rope_torch(x: Tensor, positions: Tensor, theta: float, kind: str, parameters: Sequence[float], *, out: Tensor) -> None:
    """Rows of a table of cosines and sines; `x * cos + swapped halves * signed sin` has the reference's very bits."""
    key = (x.shape[-1], float(theta), kind, tuple(map(float, parameters)))
    rows = _turns_cached(key, positions).view(x.shape[0], 2, *[1] * (x.dim() - 2), x.shape[-1])
    cosine, sine = rows.unbind(1)
    wide = x if x.dtype == compute_dtype(x.dtype) else x.float()
    swapped = wide.roll(x.shape[-1] // 2, -1).mul_(sine)
    if out.dtype == wide.dtype:
        torch.mul(wide, cosine, out=out).add_(swapped)
    else:
        torch.add(wide * cosine, swapped, out=out)
