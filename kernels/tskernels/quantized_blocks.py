"""The blocks of GGUF files taken apart: rows of u8 [O, bytes] to codes and scales, whose values stay as they are."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tskernels.quantized_parts import GROUP, Parts

_SUPER: Final = 8
"""Groups of a block of 256."""


def _fields(rows: Tensor, *sizes: int) -> list[Tensor]:
    """Bytes of each block [O, blocks, size]."""
    return list(torch.split(rows.view(rows.shape[0], -1, sum(sizes)), list(sizes), -1))


def _half(field: Tensor) -> Tensor:
    return field.contiguous().view(torch.float16).squeeze(-1)


def _nibbles(field: Tensor, run: int) -> Tensor:
    """Of each run of bytes the lower halves, then the upper ones."""
    runs = field.reshape(*field.shape[:-1], -1, run)
    return torch.stack([runs & 15, runs >> 4], -2).flatten(-3)


def _bits(field: Tensor, run: int, width: int) -> Tensor:
    """Of each run of bytes the lowest `width` bits, then the next, and so on."""
    runs = field.reshape(*field.shape[:-1], -1, run)
    return torch.stack([runs >> shift & (1 << width) - 1 for shift in range(0, 8, width)], -2).flatten(-3)


def parse_q8_0(rows: Tensor) -> Parts:
    d, codes = _fields(rows, 2, GROUP)
    return Parts((codes ^ 128).flatten(1), (), (_half(d),))


def parse_q4_0(rows: Tensor) -> Parts:
    d, codes = _fields(rows, 2, GROUP // 2)
    return Parts(_nibbles(codes, GROUP // 2).flatten(1), (), (_half(d),))


def parse_q4_1(rows: Tensor) -> Parts:
    d, m, codes = _fields(rows, 2, 2, GROUP // 2)
    return Parts(_nibbles(codes, GROUP // 2).flatten(1), (), (_half(d), _half(m)))


def parse_q5_0(rows: Tensor) -> Parts:
    d, high, codes = _fields(rows, 2, 4, GROUP // 2)
    # Bit k of the four bytes belongs to code k.
    fifth = _bits(high, 1, 1)
    return Parts((_nibbles(codes, GROUP // 2) | fifth << 4).flatten(1), (), (_half(d),))


def parse_q4_k(rows: Tensor) -> Parts:
    d, dmin, scales, codes = _fields(rows, 2, 2, 12, 128)
    return Parts(_nibbles(codes, GROUP).flatten(1), (_half(d), _half(dmin)), _scales_and_mins(scales))


def parse_q5_k(rows: Tensor) -> Parts:
    d, dmin, scales, high, codes = _fields(rows, 2, 2, 12, GROUP, 128)
    fifth = _bits(high, GROUP, 1)
    return Parts((_nibbles(codes, GROUP) | fifth << 4).flatten(1), (_half(d), _half(dmin)), _scales_and_mins(scales))


def parse_q6_k(rows: Tensor) -> Parts:
    low, high, scales, d = _fields(rows, 128, 64, 16, 2)
    codes = _nibbles(low, 64) | _bits(high, GROUP, 2) << 4
    pairs = scales.contiguous().view(torch.int8).view(*scales.shape[:-1], _SUPER, 2)
    return Parts(codes.flatten(1), (_half(d),), (pairs[..., 0].flatten(1), pairs[..., 1].flatten(1)))


def _scales_and_mins(field: Tensor) -> tuple[Tensor, Tensor]:
    """Eight of 6 bits each in twelve bytes: of the first four all bits together, of the others two bits above those."""
    first, second, third = torch.split(field, 4, -1)
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], -1)
    mins = torch.cat([second & 63, third >> 4 | second >> 6 << 4], -1)
    return scales.flatten(1), mins.flatten(1)
