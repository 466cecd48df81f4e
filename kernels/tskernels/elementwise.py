"""Sums, products, scaling and capping of whole tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.cost import bandwidth_bound, composed
from tskernels.dtypes import compute_dtype
from tskernels.registry import Call, kernel, one_float_type, op
from tskernels.target import ANY, CUDA, Target


def _same_shape(x: Tensor, y: Tensor) -> None:
    # torch would broadcast; the op does not.
    if x.shape != y.shape:
        raise ValueError(f"operands of shapes {list(x.shape)} and {list(y.shape)} must be equal")


@op("ts::add")
def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, same shape."""
    _same_shape(x, y)
    return (x.to(compute_dtype(x.dtype)) + y).to(x.dtype)


@op("ts::mul")
def mul(x: Tensor, y: Tensor) -> Tensor:
    """`x * y`, same shape."""
    _same_shape(x, y)
    return (x.to(compute_dtype(x.dtype)) * y).to(x.dtype)


@op("ts::scale")
def scale(x: Tensor, factor: float) -> Tensor:
    """`x * factor`, any shape."""
    return (x.to(compute_dtype(x.dtype)) * factor).to(x.dtype)


@op("ts::scale_rows")
def scale_rows(x: Tensor, factors: Tensor) -> Tensor:
    """`x [..., D]` times its row's number in `factors [..., 1]`."""
    _same_shape(x[..., :1], factors)
    return (x.to(compute_dtype(x.dtype)) * factors).to(x.dtype)


@op("ts::softcap")
def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`, any shape: squeezed into (-cap, cap)."""
    return (cap * torch.tanh(x.to(compute_dtype(x.dtype)) / cap)).to(x.dtype)


def _library_bound(call: Call, target: Target) -> float:
    """`bandwidth_bound` of torch, which takes half as long again as other kernels for GPUs where an operand is a view of a wider value: a
    residual that lies beside its norm is one."""
    return bandwidth_bound(call, target) * (1.5 if target.family == CUDA.family else 1.0)


@kernel("ts::add", name="torch", target=ANY, when=one_float_type, cost=_library_bound)
def add_torch(x: Tensor, y: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    torch.add(x, y, out=out)


@kernel("ts::mul", name="torch", target=ANY, when=one_float_type, cost=_library_bound)
def mul_torch(x: Tensor, y: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    torch.mul(x, y, out=out)


@kernel("ts::scale_rows", name="torch", target=ANY, when=one_float_type)
def scale_rows_torch(x: Tensor, factors: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    torch.mul(x, factors, out=out)


@kernel("ts::scale", name="torch", target=ANY)
def scale_torch(x: Tensor, factor: float, *, out: Tensor) -> None:
    """One pass into `out`."""
    torch.mul(x, factor, out=out)


@kernel("ts::softcap", name="torch", target=ANY, dtypes=("f64", "f32"), cost=composed(3))
def softcap_torch(x: Tensor, cap: float, *, out: Tensor) -> None:
    """Three passes over `out`; reduced types would round at each, so they stay with the reference."""
    torch.div(x, cap, out=out).tanh_().mul_(cap)
