"""Weights of 4-bit floats with a power of two for each 32 neighbours in k: the experts of gpt-oss.

`X_blocks` u8 [N, O, K / 32, 16], two codes a byte, the lower bits first; `X_scales` u8 [N, O, K / 32], exponents plus 127. The weight X of
these is [N, K, O].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.checkpoint import TensorInfo
from tsc.checkpoint.encoded import Encoded, StoredModule

if TYPE_CHECKING:
    import torch

_GROUP = 32


class Mxfp4Method:
    parts = ("blocks", "scales")

    def __init__(self, source: Path, config: Mapping[str, Any]) -> None:
        pass

    def weight(self, module: StoredModule) -> Mxfp4Weight | None:
        """None where the module has no blocks."""
        blocks = module.find("blocks")
        if blocks is None:
            return None
        if len(blocks.shape) != 4 or blocks.shape[-1] != _GROUP // 2:
            what = f"has `{module.name}_blocks` as {list(blocks.shape)}, and blocks are [N, O, K / {_GROUP}, {_GROUP // 2}]"
            raise module.refusal(what, "give the checkpoint in bf16")
        module.require("scales", blocks.shape[:-1])
        return Mxfp4Weight(module, blocks.shape[:3])


class Mxfp4Weight(Encoded):
    """Stacked matrices, read as bf16, which has all their values; to pieces the outputs of all of them are rows."""

    block_dimension = 1

    def __init__(self, module: StoredModule, blocks: Sequence[int]) -> None:
        self._stacked, self._outputs, self._groups = blocks
        super().__init__(module, (self._stacked * self._outputs, self._groups * _GROUP))

    @property
    def info(self) -> TensorInfo:
        return TensorInfo("bf16", (self._stacked, self.shape[1], self._outputs))

    def read(self, name: str) -> torch.Tensor:
        import torch

        values = torch.empty(self.shape, dtype=torch.bfloat16)
        for rows, some in self._pieces():
            values[rows] = some
        return values.view(self._stacked, self._outputs, -1).transpose(1, 2)

    def format(self) -> str | None:
        return "mxfp4"

    def blocks(self) -> torch.Tensor:
        """As a GGUF has them: the exponent, then bytes of which each has a code of the first half of a block and one of the second."""
        import torch

        blocks, scales = self._load()
        packed = torch.empty(*scales.shape, 1 + _GROUP // 2, dtype=torch.uint8)
        packed[..., 0] = scales
        for rows in self._rows(1):
            first, second = torch.split(_codes(blocks[rows]), _GROUP // 2, -1)
            packed[rows, :, 1:] = first | second << 4
        return packed.view(self._stacked, self._outputs, -1)

    def _pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        import torch

        from tskernels.floats4 import E2M1_VALUES

        blocks, scales = self._load()
        values = torch.tensor(E2M1_VALUES)
        for rows in self._rows(1):
            yield rows, torch.ldexp(values[_codes(blocks[rows]).int()], scales[rows].int()[..., None] - 127).flatten(1)

    def _load(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, groups, 16] and [rows, groups]"""
        blocks, scales = self.module.load("blocks"), self.module.load("scales")
        return blocks.reshape(self.shape[0], self._groups, -1), scales.reshape(self.shape[0], self._groups)


def _codes(blocks: torch.Tensor) -> torch.Tensor:
    """[..., 16] to [..., 32]."""
    import torch

    return torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
