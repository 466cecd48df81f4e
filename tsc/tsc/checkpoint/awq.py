"""AWQ in its `gemm` packing: 4 bits, eight outputs of an input in a word, a scale and a zero point for each group of inputs.

qweight i32 [K, O / 8], qzeros i32 [G, O / 8], scales [G, O].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.encoded import Affine, StoredModule, unpacked
from tsc.checkpoint.errors import UNKNOWN_QUANTIZATION, failure

if TYPE_CHECKING:
    import torch

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in a word of each of eight outputs."""


class AwqMethod:
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, source: Path, config: Mapping[str, Any]) -> None:
        bits, version = config.get("bits", config.get("w_bit", 4)), str(config.get("version") or config.get("format") or "gemm").lower()
        self._group = int(config.get("group_size", config.get("q_group_size", 128)))
        fix = "quantize the model by AWQ with 4 bits and version `gemm`, or give it in bf16"
        if bits != 4:
            raise failure(UNKNOWN_QUANTIZATION, source, f"is quantized by awq to {bits} bits; 4 are read", fix)
        if version != "gemm":
            raise failure(UNKNOWN_QUANTIZATION, source, f"is quantized by awq in the packing `{version}`; `gemm` is read", fix)

    def weight(self, module: StoredModule) -> AwqWeight | None:
        if module.find("qweight") is None:
            return None
        inputs, words = module.shape("qweight")
        group = inputs if self._group == -1 else self._group
        module.require("qzeros", (-(-inputs // group), words))
        module.require("scales", (-(-inputs // group), words * 8))
        return AwqWeight(module, (words * 8, inputs), group)


class AwqWeight(Affine):
    def __init__(self, module: StoredModule, shape: tuple[int, int], group: int) -> None:
        super().__init__(module, shape, 4)
        self._group = group

    def codes(self, rows: slice) -> torch.Tensor:
        return _columns(self.module.load("qweight")[:, rows.start // 8 : rows.stop // 8]).T.contiguous()

    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.module.load("scales").float().T.contiguous(), _columns(self.module.load("qzeros")).T.contiguous()

    def run(self) -> int:
        return self._group


def _columns(words: torch.Tensor) -> torch.Tensor:
    """i32 [N, W] to u8 [N, 8 W]."""
    return unpacked(words, 4).view(*words.shape, 8)[..., list(_PLACES)].flatten(1)
