"""Kernels in Triton's interpreter against their references in f64, into results full of NaN.

The interpreter says that the arithmetic is right, not that threads wait for each other or that a device has room. It rounds to bf16 by
cutting off, so that a result may be a whole unit away.
"""

from __future__ import annotations

from typing import Any

import torch
from tests.gpu.interpreter import require
from torch import Tensor

from tskernels.registry import lookup, op_named

require()

UNIT = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-20}
"""Of a result's size, what a rounding to its type and the arithmetic before it may be off by."""
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def run(op: str, *operands: Any, shape: tuple[int, ...], dtype: torch.dtype, kernel: str = "triton", **attributes: Any) -> Tensor:
    """A kernel's result."""
    out = torch.full(shape, torch.nan, dtype=dtype) if dtype.is_floating_point else torch.full(shape, -77, dtype=dtype)
    lookup(op, kernel).function(*operands, out=out, **attributes)
    return out


def check(op: str, *operands: Any, slack: float = 0.0, dtype: torch.dtype | None = None, **attributes: Any) -> None:
    """That a kernel's result is the reference's, to UNIT of its size, and to UNIT of slack."""
    reference = op_named(op).reference
    expected = reference(*map(wide, operands), **attributes)
    if dtype is None:
        dtype = reference(*operands, **attributes).dtype
    assert dtype is not None
    result = run(op, *operands, shape=tuple(expected.shape), dtype=dtype, **attributes)
    if not dtype.is_floating_point:
        assert torch.equal(result, reference(*operands, **attributes))
        return
    bound = UNIT[dtype] * (expected.abs() + slack) + 1e-6 * float(expected.abs().max())
    worst = ((result.double() - expected).abs() / bound).max()
    assert worst <= 1, f"{op}: off by {float(worst):.3g} of what is allowed"
