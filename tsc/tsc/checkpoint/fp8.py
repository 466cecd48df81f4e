"""Weights of 8-bit floats with a scale for a tensor, for each output, or for each block of both dimensions (DeepSeek-V3).

weight f8 [O, K]; weight_scale_inv or weight_scale: [], [1], [O, 1], [O] or [O / rows, K / columns] of a block, rounded up. Either name
means what the numbers are multiplied with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.encoded import Encoded, StoredModule

if TYPE_CHECKING:
    import torch

_SCALES = ("weight_scale_inv", "weight_scale")


class Fp8Method:
    parts = ("weight", *_SCALES)

    def __init__(self, source: Path, config: Mapping[str, Any]) -> None:
        block = config.get("weight_block_size")
        self._block = (int(block[0]), int(block[1])) if block else None

    def weight(self, module: StoredModule) -> Fp8Weight | None:
        return fp8_weight(module, self._block)


def fp8_weight(module: StoredModule, block: tuple[int, int] | None) -> Fp8Weight | None:
    """None where the module's weight is not of 8-bit floats with a scale."""
    weight, scale = module.find("weight"), next((s for s in _SCALES if module.find(s)), None)
    if weight is None or not weight.type.startswith("F8_") or len(weight.shape) != 2 or scale is None:
        return None
    outputs, inputs = weight.shape
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (outputs,), (outputs, 1)]
    if block is not None:
        shapes.append((-(-outputs // block[0]), -(-inputs // block[1])))
    module.require(scale, *shapes)
    return Fp8Weight(module, (outputs, inputs), scale, block)


class Fp8Weight(Encoded):
    def __init__(self, module: StoredModule, shape: tuple[int, int], scale: str, block: tuple[int, int] | None) -> None:
        super().__init__(module, shape)
        self._scale, self._block = scale, block

    def _pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        import torch

        codes, scale = self.module.load("weight"), self.module.load(self._scale).float()
        outputs, inputs = self.shape
        grid = tuple(-(-n // b) for n, b in zip(self.shape, self._block or self.shape, strict=True))
        if scale.shape == grid and scale.numel() > 1:
            rows_each, columns_each = self._block or self.shape
            columns = torch.arange(inputs) // columns_each
        else:
            # One, or one a row.
            scale = scale.view(-1, 1).expand(outputs, 1)
            rows_each, columns = 1, torch.zeros(1, dtype=torch.int64)
        for rows in self._rows(1):
            which = torch.arange(rows.start, rows.stop) // rows_each
            yield rows, codes[rows].float() * scale[which][:, columns]
