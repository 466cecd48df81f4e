"""Element type names and what they mean: bytes, torch dtypes, the type arithmetic is done in."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

SIZES: Final = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "u8": 1, "f8e4m3": 1}
FLOATS: Final = ("f64", "f32", "f16", "bf16")
_TORCH_NAMES: Final = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "u8": "uint8",
    "f8e4m3": "float8_e4m3fn",
}


def size_bytes(name: str) -> int:
    """Bytes of one element."""
    if name not in SIZES:
        raise ValueError(f"unknown element type `{name}`; known: {', '.join(SIZES)}")
    return SIZES[name]


@cache
def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of an element type name."""
    import torch  # here, so that the compiler's front end can size types without torch

    size_bytes(name)
    dtype = getattr(torch, _TORCH_NAMES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The element type name of a torch dtype."""
    short = str(dtype).removeprefix("torch.")
    for name, torch_name in _TORCH_NAMES.items():
        if torch_name == short:
            return name
    raise ValueError(f"torch dtype `{short}` has no element type name; known: {', '.join(SIZES)}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an op computes in before it rounds once to `dtype`: f32, and f64 for f64."""
    import torch

    return torch.float64 if dtype == torch.float64 else torch.float32
