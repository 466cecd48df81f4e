"""A safetensors file written front to back: the header from what is known in advance, then one tensor after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tsc.artifact.hashed_file import HashedFile
from tsc.checkpoint import TensorInfo

if TYPE_CHECKING:
    import torch

_NAMES = {"f32": "F32", "bf16": "BF16", "f16": "F16", "f64": "F64", "i32": "I32", "i64": "I64", "u8": "U8"}
_TORCH = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "f64": "float64", "i32": "int32", "i64": "int64", "u8": "uint8"}
_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "i32": 4, "i64": 8, "u8": 1}
_ALIGNMENT = 64


class SafetensorsStream:
    """Holds no tensor. The data starts at a multiple of 64 bytes; within it the format allows no gaps.

    `append` takes the tensors in the layout's order: a wrong name, shape or element type is a ValueError before anything is written.
    """

    def __init__(self, path: Path, layout: Mapping[str, TensorInfo]) -> None:
        self._layout = dict(layout)
        self._waiting = iter(self._layout)
        self._next = next(self._waiting, None)
        self._rows = 0  # of the next tensor, that are written
        header = _header(self._layout)
        self.file = HashedFile(path)
        try:
            self.file.write(header)
        except BaseException:
            self.file.abandon()
            raise

    @property
    def missing(self) -> str | None:
        """The tensor that `append` expects next; None when the file is complete."""
        return self._next

    def append(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor. Copies it when it is not contiguous in CPU memory."""
        if name == self._next and (self._rows or tuple(tensor.shape) != self._layout[name].shape):
            raise self._refuse(name, tensor)
        self.extend(name, tensor)

    def extend(self, name: str, rows: torch.Tensor) -> None:
        """Write the next rows of a tensor; with its last one it is complete."""
        if name != self._next:
            raise ValueError(f"{self.file.path.name}: tensor `{self._next}` comes next, got `{name}`")
        info = self._layout[name]
        dtype = str(rows.dtype).removeprefix("torch.")
        count = rows.shape[0] if rows.dim() else 1
        if dtype != _TORCH[info.dtype] or tuple(rows.shape[1:]) != info.shape[1:] or rows.dim() != len(info.shape):
            raise self._refuse(name, rows)
        if info.shape and self._rows + count > info.shape[0]:
            raise self._refuse(name, rows)
        if rows.numel():
            self.file.write(_bytes(rows))
        self._rows += count
        if not info.shape or self._rows == info.shape[0]:
            self._next, self._rows = next(self._waiting, None), 0

    def _refuse(self, name: str, got: torch.Tensor) -> ValueError:
        info, dtype = self._layout[name], str(got.dtype).removeprefix("torch.")
        after = f" after {self._rows} rows" if self._rows else ""
        return ValueError(
            f"{self.file.path.name}: tensor `{name}` is laid out as {info.dtype} {list(info.shape)}, got {dtype} {list(got.shape)}{after}"
        )

    def close(self) -> None:
        """Wait until the file is on the disk. ValueError when tensors are missing."""
        if self._next is not None:
            self.file.abandon()
            raise ValueError(f"{self.file.path.name}: tensor `{self._next}` was never written")
        self.file.close()


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(layout: Mapping[str, TensorInfo]) -> bytes:
    entries: dict[str, object] = {}
    position = 0
    for name, info in layout.items():
        end = position + math.prod(info.shape) * _BYTES[info.dtype]
        entries[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
