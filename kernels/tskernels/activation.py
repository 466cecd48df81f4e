"""Elementwise nonlinearities, in f32 and rounded once."""

from __future__ import annotations

from torch import Tensor, ops
from torch.nn import functional

from tskernels.dtypes import compute_dtype
from tskernels.registry import kernel, op
from tskernels.target import ANY


@op("ts::silu")
def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`, any shape."""
    return functional.silu(x.to(compute_dtype(x.dtype))).to(x.dtype)


@op("ts::sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`, any shape."""
    return x.to(compute_dtype(x.dtype)).sigmoid().to(x.dtype)


@op("ts::gelu")
def gelu(x: Tensor) -> Tensor:
    """`x * Phi(x)` by the error function, any shape."""
    return functional.gelu(x.to(compute_dtype(x.dtype))).to(x.dtype)


@op("ts::gelu_tanh")
def gelu_tanh(x: Tensor) -> Tensor:
    """`x * Phi(x)` by the tanh approximation, any shape."""
    return functional.gelu(x.to(compute_dtype(x.dtype)), approximate="tanh").to(x.dtype)


# torch.nn.functional has no `out`; the operators below it do. They widen reduced types inside, element by element.


@kernel("ts::silu", name="torch", target=ANY)
def silu_torch(x: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    ops.aten.silu.out(x, out=out)


@kernel("ts::sigmoid", name="torch", target=ANY)
def sigmoid_torch(x: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    ops.aten.sigmoid.out(x, out=out)


@kernel("ts::gelu", name="torch", target=ANY)
def gelu_torch(x: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    ops.aten.gelu.out(x, out=out)


@kernel("ts::gelu_tanh", name="torch", target=ANY)
def gelu_tanh_torch(x: Tensor, *, out: Tensor) -> None:
    """One pass into `out`."""
    ops.aten.gelu.out(x, approximate="tanh", out=out)
