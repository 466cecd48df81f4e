"""What quantized weights are made of in tests: floats, or blocks as a GGUF file has them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tskernels.quantized import Format

_HALVES: Final = {
    **dict.fromkeys(("q8_0", "q4_0", "q5_0", "iq4_nl", "iq4_xs"), (0,)),
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)),
    "q3_k": (108,),
    "q6_k": (208,),
}
"""Where a block has f16; all other bytes may be anything."""


def source(form: Format, outputs: int, K: int, seed: int) -> Tensor:
    """Rows that `form` packs."""
    generator = torch.Generator().manual_seed(seed)
    if not form.row_block_bytes:
        return torch.randn(outputs, K, generator=generator) * 0.05
    blocks = torch.randint(0, 256, (outputs, K // form.block_codes, form.row_block_bytes), dtype=torch.uint8, generator=generator)
    if form.name.startswith("affine"):
        scale = torch.randn(*blocks.shape[:2], 1, generator=generator) * 0.01
        blocks[..., :4] = scale.view(torch.uint8)
        # Not at an end of the codes: what a whole block had in common would then be most of its product.
        quarter = 1 << form.bits - 2
        blocks[..., 4] = torch.randint(-quarter, quarter, blocks.shape[:2], dtype=torch.int8, generator=generator).view(torch.uint8)
    if form.name == "mxfp4":  # of exponents around those of weights
        blocks[..., 0] = blocks[..., 0] % 16 + 112
    for first in _HALVES.get(form.name, ()):
        scale = torch.randn(outputs, K // form.block_codes, 1, generator=generator) * 0.01
        blocks[..., first : first + 2] = scale.half().view(torch.uint8)
    return blocks.view(outputs, -1)
