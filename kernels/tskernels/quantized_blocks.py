"""The blocks of GGUF files taken apart: rows of u8 [O, bytes] to codes and scales, whose values stay as they are."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tskernels.quantized_parts import GROUP, Parts

_SUPER: Final = 8
"""Groups of a block of 256."""
IQ4_VALUES: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of `iq4_nl` and `iq4_xs` stand for."""


def fields(rows: Tensor, *sizes: int) -> list[Tensor]:
    """Bytes of each block [O, blocks, size]."""
    return list(torch.split(rows.view(rows.shape[0], -1, sum(sizes)), list(sizes), -1))


def _half(field: Tensor) -> Tensor:
    return field.contiguous().view(torch.float16).squeeze(-1)


def nibbles(field: Tensor, run: int) -> Tensor:
    """Of each run of bytes the lower halves, then the upper ones."""
    runs = field.reshape(*field.shape[:-1], -1, run)
    return torch.stack([runs & 15, runs >> 4], -2).flatten(-3)


def _bits(field: Tensor, run: int, width: int) -> Tensor:
    """Of each run of bytes the lowest `width` bits, then the next, and so on."""
    runs = field.reshape(*field.shape[:-1], -1, run)
    return torch.stack([runs >> shift & (1 << width) - 1 for shift in range(0, 8, width)], -2).flatten(-3)


def parse_q8_0(rows: Tensor) -> Parts:
    d, codes = fields(rows, 2, GROUP)
    return Parts((codes ^ 128).flatten(1), (), (_half(d),))


def parse_q4_0(rows: Tensor) -> Parts:
    d, codes = fields(rows, 2, GROUP // 2)
    return Parts(nibbles(codes, GROUP // 2).flatten(1), (), (_half(d),))


def parse_q4_1(rows: Tensor) -> Parts:
    d, m, codes = fields(rows, 2, 2, GROUP // 2)
    return Parts(nibbles(codes, GROUP // 2).flatten(1), (), (_half(d), _half(m)))


def parse_q5_0(rows: Tensor) -> Parts:
    d, high, codes = fields(rows, 2, 4, GROUP // 2)
    # Bit k of the four bytes belongs to code k.
    fifth = _bits(high, 1, 1)
    return Parts((nibbles(codes, GROUP // 2) | fifth << 4).flatten(1), (), (_half(d),))


def parse_q5_1(rows: Tensor) -> Parts:
    d, m, high, codes = fields(rows, 2, 2, 4, GROUP // 2)
    fifth = _bits(high, 1, 1)
    return Parts((nibbles(codes, GROUP // 2) | fifth << 4).flatten(1), (), (_half(d), _half(m)))


def parse_iq4_xs(rows: Tensor) -> Parts:
    d, high, low, codes = fields(rows, 2, 2, 4, 128)
    # Of each scale four bits, then two above them, less 32.
    scales = (nibbles(low, 1) | _bits(high, 1, 2) << 4).view(torch.int8) - 32
    return Parts(nibbles(codes, GROUP // 2).flatten(1), (_half(d),), (scales.flatten(1),))


def parse_q3_k(rows: Tensor) -> Parts:
    third, low, scales, d = fields(rows, GROUP, 64, 12, 2)
    codes = _bits(low, GROUP, 2) | _bits(third, GROUP, 1) << 2
    # Of the 16 scales four bits, then two above them, less 32.
    six = (nibbles(scales[..., :8], 8) | _bits(scales[..., 8:], 4, 2) << 4).view(torch.int8) - 32
    pairs = six.view(*six.shape[:-1], _SUPER, 2)
    return Parts(codes.flatten(1), (_half(d),), (pairs[..., 0].flatten(1), pairs[..., 1].flatten(1)))


def parse_q4_k(rows: Tensor) -> Parts:
    d, dmin, scales, codes = fields(rows, 2, 2, 12, 128)
    return Parts(nibbles(codes, GROUP).flatten(1), (_half(d), _half(dmin)), _scales_and_mins(scales))


def parse_q5_k(rows: Tensor) -> Parts:
    d, dmin, scales, high, codes = fields(rows, 2, 2, 12, GROUP, 128)
    fifth = _bits(high, GROUP, 1)
    return Parts((nibbles(codes, GROUP) | fifth << 4).flatten(1), (_half(d), _half(dmin)), _scales_and_mins(scales))


def parse_q6_k(rows: Tensor) -> Parts:
    low, high, scales, d = fields(rows, 128, 64, 16, 2)
    codes = nibbles(low, 64) | _bits(high, GROUP, 2) << 4
    pairs = scales.contiguous().view(torch.int8).view(*scales.shape[:-1], _SUPER, 2)
    return Parts(codes.flatten(1), (_half(d),), (pairs[..., 0].flatten(1), pairs[..., 1].flatten(1)))


def parse_mxfp4(rows: Tensor) -> Parts:
    power, codes = fields(rows, 1, GROUP // 2)
    return Parts(nibbles(codes, GROUP // 2).flatten(1), (), (power.squeeze(-1),))


def _scales_and_mins(field: Tensor) -> tuple[Tensor, Tensor]:
    """Eight of 6 bits each in twelve bytes: of the first four all bits together, of the others two bits above those."""
    first, second, third = torch.split(field, 4, -1)
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], -1)
    mins = torch.cat([second & 63, third >> 4 | second >> 6 << 4], -1)
    return scales.flatten(1), mins.flatten(1)
