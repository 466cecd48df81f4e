"""Codes with a scale and a zero point for each run of inputs, as AWQ, GPTQ and compressed-tensors have them: put into blocks and taken
apart.

A block is an f32 scale, the zero point less the codes' offset as a signed byte, and the codes: of 4 bits the first half of them in the
lower halves of bytes. A row of `int8` has one scale and no zero point. All numbers stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.quantized_blocks import fields, nibbles
from tskernels.quantized_parts import GROUP, Parts

_SCALE, _ZERO = 4, 1  # bytes


def affine_blocks(codes_OK: Tensor, scale_OB: Tensor, zero_OB: Tensor, bits: int) -> Tensor:
    """u8 [O, bytes] of blocks of K / B inputs. Codes and zero points u8, of 4 or 8 bits, scales f32."""
    outputs, blocks = scale_OB.shape
    codes = codes_OK.view(outputs, blocks, -1)
    if bits == 4:
        lower, upper = codes.chunk(2, -1)
        codes = lower | upper << 4
    zero = (zero_OB.to(torch.int16) - (1 << bits - 1)).to(torch.int8)
    scale = scale_OB.contiguous().view(outputs, blocks, 1).view(torch.uint8)
    return torch.cat([scale, zero.view(torch.uint8)[..., None], codes], -1).flatten(1)


def int8_rows(codes_OK: Tensor, scale_O: Tensor) -> Tensor:
    """u8 [O, 4 + K] of signed codes with one f32 scale a row."""
    return torch.cat([scale_O.contiguous().view(-1, 1).view(torch.uint8), codes_OK.view(torch.uint8)], 1)


def parse_int8(rows: Tensor) -> Parts:
    scale, codes = rows[:, :_SCALE], rows[:, _SCALE:]
    return Parts(codes ^ 128, (scale.contiguous().view(torch.float32),), ())


def parse_affine4(rows: Tensor) -> Parts:
    return _parse4(rows, GROUP)


def parse_affine4_128(rows: Tensor) -> Parts:
    return _parse4(rows, 4 * GROUP)


def _parse4(rows: Tensor, width: int) -> Parts:
    scale, zero, codes = fields(rows, _SCALE, _ZERO, width // 2)
    return Parts(nibbles(codes, width // 2).flatten(1), _line(scale, zero), ())


def parse_affine8(rows: Tensor) -> Parts:
    scale, zero, codes = fields(rows, _SCALE, _ZERO, GROUP)
    return Parts(codes.flatten(1), _line(scale, zero), ())


def _line(scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    return scale.contiguous().view(torch.float32).squeeze(-1), zero.contiguous().view(torch.int8).squeeze(-1)
