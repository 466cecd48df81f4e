"""compressed-tensors: integers of 8 bits, packed integers of fewer, and 8-bit floats.

weight i8 [O, K], or weight_packed i32 [O, K * bits / 32], where codes are stored plus half their range, with weight_shape [2]; weight_scale
[], [1], [O, 1] or [O, G]; weight_zero_point as i8 like the scales, or packed along O, i32 [O * bits / 32, G]; weight_g_idx i32 [K], the
group of each input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.encoded import Affine, Encoded, StoredModule, unpacked
from tsc.checkpoint.errors import UNKNOWN_QUANTIZATION, failure
from tsc.checkpoint.fp8 import fp8_weight

if TYPE_CHECKING:
    import torch

_FORMATS = ("dense", "float-quantized", "int-quantized", "mixed-precision", "naive-quantized", "pack-quantized")
_BITS = (2, 4, 8)


class CompressedTensorsMethod:
    parts = ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")

    def __init__(self, source: Path, config: Mapping[str, Any]) -> None:
        fix = f"compress the model as one of {', '.join(_FORMATS[1:])}, or give it in bf16"
        groups = (config.get("config_groups") or {}).values()
        for form in (config.get("format"), *(group.get("format") for group in groups)):
            if form not in (None, *_FORMATS):
                raise failure(UNKNOWN_QUANTIZATION, source, f"has weights compressed as `{form}`, which is not read", fix)
        if (sparse := (config.get("sparsity_config") or {}).get("format", "dense")) != "dense":
            raise failure(UNKNOWN_QUANTIZATION, source, f"has sparse weights compressed as `{sparse}`, which are not read", fix)
        if (config.get("transform_config") or {}).get("config_groups"):
            what = "rotates activations between its weights (`transform_config`), which is not done"
            raise failure(UNKNOWN_QUANTIZATION, source, what, fix)
        blocks = [weights["block_structure"] for g in groups if (weights := g.get("weights") or {}).get("block_structure")]
        self._block = (int(blocks[0][0]), int(blocks[0][1])) if blocks else None
        self._inputs_too = any(group.get("input_activations") for group in groups)

    def weight(self, module: StoredModule) -> Encoded | None:
        weight, packed = module.find("weight"), module.find("weight_packed")
        if packed is not None:
            return _packed(module)
        if weight is not None and weight.type == "I8" and len(weight.shape) == 2:
            outputs, inputs = weight.shape
            _require_lines(module, outputs, inputs)
            return CompressedInt8(module, (outputs, inputs), self._inputs_too)
        return fp8_weight(module, self._block)


class Compressed(Affine):
    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        scale = self.module.load("weight_scale").float()
        scale = scale.reshape(self.shape[0], -1) if scale.numel() > 1 else scale.reshape(1, 1).expand(self.shape[0], 1)
        if self.module.find("weight_zero_point") is None:
            return scale, torch.full(scale.shape, 1 << self.bits - 1, dtype=torch.uint8)
        return scale, self._zeros().expand(scale.shape)

    def _zeros(self) -> torch.Tensor:
        """u8 [O, G] or [1, 1]."""
        return _unsigned(self.module.load("weight_zero_point")).reshape(-1, self._groups)

    def run(self) -> int | torch.Tensor:
        import torch

        neighbours = -(-self.shape[1] // self._groups)
        if self.module.find("weight_g_idx") is None:
            return neighbours
        order = self.module.load("weight_g_idx").long()
        if order.min() < 0:  # not in an order of its own
            return neighbours
        return neighbours if torch.equal(order, torch.arange(self.shape[1]) // neighbours) else order

    @property
    def _groups(self) -> int:
        shape = self.module.shape("weight_scale")
        return shape[1] if len(shape) == 2 else 1


class CompressedInt8(Compressed):
    """weight i8."""

    def __init__(self, module: StoredModule, shape: tuple[int, int], inputs_too: bool) -> None:
        super().__init__(module, shape, 8)
        self._inputs_too = inputs_too

    def codes(self, rows: slice) -> torch.Tensor:
        return _unsigned(self.module.load("weight")[rows])

    @property
    def of_rows(self) -> bool:
        return self._inputs_too and self._groups == 1 and self.module.find("weight_zero_point") is None


class CompressedPacked(Compressed):
    """weight_packed."""

    def codes(self, rows: slice) -> torch.Tensor:
        return unpacked(self.module.load("weight_packed")[rows], self.bits)[:, : self.shape[1]].contiguous()

    def _zeros(self) -> torch.Tensor:
        return unpacked(self.module.load("weight_zero_point").T, self.bits)[:, : self.shape[0]].T.contiguous()


def _packed(module: StoredModule) -> CompressedPacked:
    module.require("weight_shape", (2,))
    outputs, inputs = (int(n) for n in module.load("weight_shape").tolist())
    rows, words = module.shape("weight_packed")
    bits = next((b for b in _BITS if -(-inputs * b // 32) == words), 0)
    if rows != outputs or not bits or module.tensors["weight_packed"].type != "I32":
        what = (
            f"has `{module.name}.weight_packed` as {module.tensors['weight_packed'].type} {[rows, words]} for a weight {[outputs, inputs]}"
        )
        raise module.refusal(f"{what}; read are integers of 2, 4 and 8 bits", "compress the model to 4 bits, or give it in bf16")
    _require_lines(module, outputs, inputs)
    if module.find("weight_zero_point") is not None:
        scales = module.shape("weight_scale")
        module.require("weight_zero_point", (-(-outputs * bits // 32), scales[1] if len(scales) == 2 else 1))
    return CompressedPacked(module, (outputs, inputs), bits)


def _require_lines(module: StoredModule, outputs: int, inputs: int) -> None:
    shape = module.shape("weight_scale")
    groups = shape[1] if len(shape) == 2 and shape[1] and inputs % shape[1] == 0 else 1
    module.require("weight_scale", (), (1,), (1, 1), (outputs,), (outputs, groups))


def _unsigned(codes: torch.Tensor) -> torch.Tensor:
    """i8 plus 128."""
    import torch

    return codes.contiguous().view(torch.uint8) ^ 128
