"""Importance files of the tiny model, as `tsrun importance` would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tests.cli.tiny import SHAPES

from tsc.checkpoint.config import load_config

Inputs = Mapping[str, NDArray[np.float32]]
INPUTS: Inputs = {name: np.linspace(0.1, 2, shape[1], dtype=np.float32) for name, shape in SHAPES.items() if len(shape) == 2}
"""Of every weight that a product reads."""


def write_importance(path: Path, inputs: Inputs = INPUTS, **changes: Any) -> None:
    """Of the model in `checkpoint`."""
    record = {"format": 1, "config_sha256": load_config(Path("checkpoint"))[1], "text_sha256": "0" * 64, "tokens": 100}
    save_file(dict(inputs), path, {"importance": json.dumps(record | changes)})
