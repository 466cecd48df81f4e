"""Checkpoints as gpt-oss is published: the experts in MXFP4. Written by the format's description, apart from what reads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_EXPERTS = ("gate_up_proj", "down_proj")


def mxfp4(w: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] to blocks u8 [..., K / 32, 16] and scales u8 [..., K / 32]: the nearest 4-bit floats, the largest between 4 and 6."""
    groups = w.float().reshape(*w.shape[:-1], -1, 32)
    most = groups.abs().amax(-1, keepdim=True)
    exponents = torch.where(most > 0, most.log2().floor() - 2, torch.tensor(-127.0)).clamp(-127, 127)
    scaled = groups / exponents.exp2()
    codes = (scaled.abs()[..., None] - _MAGNITUDES).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents.squeeze(-1) + 127).to(torch.uint8)


def write_mxfp4(folder: Path, source: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A checkpoint of a gpt-oss checkpoint whose experts are floats; gives blocks and scales of each tensor."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    stored, made = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(_EXPERTS):
            made[name] = mxfp4(tensor.transpose(1, 2))
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = made[name]
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors")
    return made
