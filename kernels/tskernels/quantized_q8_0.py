"""Floats as blocks of `q8_0`, as a GGUF file has them: 32 codes of 8 bits and their scale.

A scale for each 32 and not for each row, of weights and of what they are multiplied with, is what keeps a model with outliers as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.quantized_parts import GROUP

_LARGEST_HALF = 65504.0


def q8_0_blocks(w_OK: Tensor) -> Tensor:
    """[O, K] to u8 [O, bytes], the nearest to what is given. K is a multiple of 32."""
    groups = w_OK.float().view(w_OK.shape[0], -1, GROUP)
    scale = (groups.abs().amax(2, keepdim=True) / 127).clamp(max=_LARGEST_HALF).half()
    divisor = scale.float()
    codes = (groups / torch.where(divisor == 0, 1, divisor)).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], 2).flatten(1)
