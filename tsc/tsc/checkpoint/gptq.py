"""GPTQ: 2, 4 or 8 bits, neighbours in k of an output in a word, a scale and a zero point for each group of inputs.

qweight i32 [K * bits / 32, O], qzeros i32 [G, O * bits / 32], scales [G, O], g_idx i32 [K]: the group of each input, which with `desc_act`
need not be that of its neighbours. The first version of the format stores zero points less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.encoded import Affine, StoredModule, unpacked
from tsc.checkpoint.errors import UNKNOWN_QUANTIZATION, failure

if TYPE_CHECKING:
    import torch

_BITS = (2, 4, 8)
_VERSIONS = ("gptq", "gptq_v2")


class GptqMethod:
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, source: Path, config: Mapping[str, Any]) -> None:
        self._bits, self._group = int(config.get("bits", 4)), int(config.get("group_size", 128))
        version = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
        if self._bits not in _BITS:
            what, fix = f"is quantized by gptq to {self._bits} bits; 2, 4 and 8 are read", "quantize it to 4 bits, or give it in bf16"
            raise failure(UNKNOWN_QUANTIZATION, source, what, fix)
        if version not in _VERSIONS:
            what, fix = (
                f"is quantized by gptq in the format `{version}`; gptq and gptq_v2 are read",
                "save it as `gptq`, or give it in bf16",
            )
            raise failure(UNKNOWN_QUANTIZATION, source, what, fix)
        self._stored_less = 1 if version == "gptq" else 0

    def weight(self, module: StoredModule) -> GptqWeight | None:
        if module.find("qweight") is None:
            return None
        words, outputs = module.shape("qweight")
        bits, inputs = self._bits, words * 32 // self._bits
        if module.find("g_idx") is not None:
            # It also says the bits of modules that have others than most (`dynamic`).
            (inputs,) = module.shape("g_idx")
            bits = next((b for b in _BITS if inputs * b == words * 32), bits)
        module.require("qweight", (inputs * bits // 32, outputs))
        groups = module.shape("scales")[0]
        module.require("scales", (groups, outputs))
        module.require("qzeros", (groups, -(-outputs * bits // 32)))
        group = inputs if self._group == -1 else self._group
        if -(-inputs // group) != groups:  # another one than most have
            group = -(-inputs // groups)
        return GptqWeight(module, (outputs, inputs), bits, group, self._stored_less)


class GptqWeight(Affine):
    def __init__(self, module: StoredModule, shape: tuple[int, int], bits: int, group: int, stored_less: int) -> None:
        super().__init__(module, shape, bits)
        self._group, self._stored_less = group, stored_less

    def codes(self, rows: slice) -> torch.Tensor:
        return unpacked(self.module.load("qweight")[:, rows].T, self.bits)

    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        zeros = unpacked(self.module.load("qzeros"), self.bits)[:, : self.shape[0]]
        zeros = zeros + self._stored_less & (1 << self.bits) - 1
        return self.module.load("scales").float().T.contiguous(), zeros.T.contiguous()

    def run(self) -> int | torch.Tensor:
        import torch

        if self.module.find("g_idx") is None:
            return self._group
        order, groups = self.module.load("g_idx").long(), self.module.shape("scales")[0]
        if order.min() < 0 or order.max() >= groups:
            what = f"has inputs in group {int(order.max())} of `{self.module.name}`, which has {groups}"
            raise self.module.refusal(what, "download it again")
        return self._group if torch.equal(order, torch.arange(self.shape[1]) // self._group) else order
