"""Product with a weight whose rows are the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from tskernels.cost import matmul_bound
from tskernels.registry import kernel, one_float_type, op


@op("ts::linear", cost=matmul_bound)
def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [..., I]`, `w [O, I]`, `bias [O]` to `[..., O]`; summed in f32 and rounded once, bias included."""
    # As a matrix: torch rounds before the bias too where `x` has more dimensions and is strided.
    result = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), w, bias)
    return result.view(*x.shape[:-1], w.shape[0])


@kernel("ts::linear", name="torch", when=one_float_type, cost=matmul_bound)
def linear_torch(x: Tensor, w: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """One gemm into `out`; `x` may be a strided view of a wider buffer."""
    if x.dim() != 2:
        x, out = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    if bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)
