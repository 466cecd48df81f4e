"""Checkpoints of well-known shapes with random weights: `python benchmarks/random_checkpoint.py CONFIG.json FOLDER`.

The file holds two random stretches, of normal numbers with a deviation of 0.02, and of numbers about 1 for the weights of norms. Every
tensor is a part of one of them that begins elsewhere, which readers of safetensors take that ask for no more than a begin and an end: so
16 GB of weights are a file of a few. What is compiled from it has each tensor in memory of its own, as always.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from tsc.elaborate import elaborate
from tsc.request import Request, find_model
from tsc.weights import declared_weights

_STEP = 4099 * 64
"""Elements between the begins of tensors that follow each other."""
_NORMS = 1 << 20


def tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of such a model has, by the model file of its architecture."""
    model = find_model(Request(None, None, None, None, "bf16", "cpu"), dict(config))
    declared = declared_weights(elaborate(model.file, dict(config), {}))
    return {name: tuple(prod(f.size or 0 for f in d) for d in weight.shape.dimensions()) for name, weight in declared if not weight.is_tied}


def write(folder: Path, config: Mapping[str, Any], *, seed: int = 0) -> int:
    """Make the checkpoint; return the bytes of all its tensors."""
    shapes = tensors(config)
    largest = max(prod(shape) for shape in shapes.values())
    room = largest + (1 << 26)
    generator = torch.Generator().manual_seed(seed)
    some = torch.empty(1 << 24).normal_(0.0, 0.02, generator=generator).to(torch.bfloat16)
    ones = torch.empty(_NORMS).normal_(1.0, 0.02, generator=generator).to(torch.bfloat16)
    header: dict[str, Any] = {}
    for index, (name, shape) in enumerate(shapes.items()):
        is_norm = len(shape) == 1
        free = _NORMS - prod(shape) if is_norm else room - prod(shape)
        begin = 2 * (index * _STEP % (free + 1) + (room if is_norm else 0))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, begin + 2 * prod(shape)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        written = 0
        while written < room:  # a stretch of odd length, so that rows of matrices, which are powers of two long, do not repeat
            part = some[: min(len(some) - 12345, room - written)]
            file.write(part.view(torch.uint8).numpy().data)
            written += len(part)
        file.write(ones.view(torch.uint8).numpy().data)
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    return 2 * sum(map(prod, shapes.values()))


if __name__ == "__main__":
    write(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
