"""Floats rounded to few bits, for the least squared error."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tskernels.quantized_parts import GROUP, Parts

_SHARES: Final = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Of a group's range: what lies outside is clipped, and the rest has finer steps."""
_LARGEST_HALF: Final = 65504.0


def round_int8(w_OK: Tensor) -> Parts:
    """One scale an output; the largest weight is exact."""
    scale = w_OK.abs().amax(1, keepdim=True) / 127
    codes = (w_OK / torch.where(scale == 0, 1, scale)).round_().clamp_(-127, 127) + 128
    return Parts(codes.to(torch.uint8), (scale,), ())


def round_int4(w_OK: Tensor) -> Parts:
    """A scale and a minimum of f16 for each group of 32."""
    outputs, inner = w_OK.shape
    x = w_OK.contiguous().view(-1, GROUP) if inner % GROUP == 0 else _padded(w_OK)
    low = x.amin(1, keepdim=True)
    width = x.amax(1, keepdim=True) - low
    # From 0 to 1, so that all groups are fitted alike.
    y = ((x - low) / width.clamp(min=torch.finfo(torch.float32).tiny)).nan_to_num_()
    best = _fitted(y, _SHARES[0])
    for share in _SHARES[1:]:
        fitted = _fitted(y, share)
        best = torch.where(fitted[:, :1] > best[:, :1], fitted, best)
    step = _in_f16(best[:, 1:2] * width)
    first = _in_f16(low + best[:, 2:] * width)
    codes = (x - first).div_(torch.where(step == 0, 1, step)).round_().clamp_(0, 15).to(torch.uint8)
    return Parts(codes.view(outputs, -1), (), (step.half().view(outputs, -1), first.half().view(outputs, -1)))


def _padded(w_OK: Tensor) -> Tensor:
    """In groups. What nobody reads repeats a weight of its group, and so costs no step."""
    missing = -w_OK.shape[1] % GROUP
    return torch.cat([w_OK, w_OK[:, -1:].expand(-1, missing)], 1).view(-1, GROUP)


def _fitted(y: Tensor, share: float) -> Tensor:
    """Codes for so much of the range, and the line through them with the least squared error: how much of the spread of y it explains,
    its step, and where it begins."""
    codes = (y * (15 / share)).add_(7.5 - 7.5 / share).round_().clamp_(0, 15)
    # As products with ones: sums of 32 neighbours are slow otherwise.
    ones = y.new_ones(GROUP, 1)
    sum_codes, sum_y, both, squares = codes @ ones, y @ ones, (codes * y) @ ones, codes.square_() @ ones
    spread = squares - sum_codes.square() / GROUP
    common = both - sum_codes * sum_y / GROUP
    step = torch.where(spread > 0, common / spread.clamp(min=0.5), 0)
    return torch.cat([step * common, step, (sum_y - step * sum_codes) / GROUP], 1)


def _in_f16(x: Tensor) -> Tensor:
    return x.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()
