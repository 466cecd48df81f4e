"""One safetensors file: its header, checked against the file's size, and tensors by name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.checkpoint import TensorInfo
from tsc.checkpoint.errors import DAMAGED_SAFETENSORS, UNKNOWN_TENSOR_TYPE, failure
from tsc.checkpoint.mapped import map_range

if TYPE_CHECKING:
    import torch

_NAMES = {"F32": "f32", "BF16": "bf16", "F16": "f16", "F64": "f64", "I32": "i32", "I64": "i64"}
_TORCH = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I32": "int32", "I64": "int64"}
_ENCODED = {
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
"""What means nothing without a scale."""
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I32": 4, "I64": 8, **dict.fromkeys(_ENCODED, 1)}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor is; `offset` counts bytes from the start of the file, `type` is safetensors' name."""

    path: Path
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(_NAMES.get(self.type, self.type.lower()), self.shape)

    def read(self, name: str, *, encoded: bool = False) -> torch.Tensor:
        """A tensor over a private mapping of the file: its memory is the page cache's and goes when the tensor does. encoded: element types
        that stand for others are read, too."""
        import torch

        types = _TORCH | _ENCODED if encoded else _TORCH
        if self.type not in types:
            what = f"stores `{name}` as {self.type}; read are {', '.join(_TORCH)}"
            raise failure(UNKNOWN_TENSOR_TYPE, self.path, what, "convert the checkpoint to bf16")
        dtype = getattr(torch, types[self.type])
        if self.size == 0:
            return torch.empty(self.shape, dtype=dtype)
        mapping, start = map_range(self.path, self.offset, self.size)
        if start % _BYTES[self.type]:  # an odd header length puts every tensor at an odd address
            return torch.frombuffer(bytearray(mapping[start : start + self.size]), dtype=dtype).reshape(self.shape)
        return torch.frombuffer(mapping, dtype=dtype, count=math.prod(self.shape), offset=start).reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, in the order of its data. CompileError when the file is shorter than its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _truncated(path, 8 + length if size >= 8 else 8, size)
            header = json.loads(file.read(length))
        rows = {name: _row(path, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise failure(DAMAGED_SAFETENSORS, path, f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise failure(DAMAGED_SAFETENSORS, path, "is no safetensors file: its header is not what the format says") from None
    expected = max((row.offset + row.size for row in rows.values()), default=8 + length)
    if size < expected:
        raise _truncated(path, expected, size)
    return dict(sorted(rows.items(), key=lambda item: item[1].offset))


def _row(path: Path, entry: dict[str, Any], start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    row = StoredTensor(path, str(entry["dtype"]), tuple(int(s) for s in entry["shape"]), start + int(begin), int(end) - int(begin))
    if row.type in _BYTES and row.size != math.prod(row.shape) * _BYTES[row.type]:
        raise ValueError
    return row


def _truncated(path: Path, expected: int, actual: int) -> Exception:
    what = f"is truncated: {expected} bytes expected, {actual} found"
    return failure(DAMAGED_SAFETENSORS, path, what, "download it again")
