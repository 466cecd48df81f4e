"""Product with a weight whose rows are the outputs."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tskernels.cost import gemm_bound, matmul_bound
from tskernels.registry import kernel, one_float_type, op
from tskernels.target import ANY


@op("ts::linear", cost=matmul_bound)
def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [..., I]`, `w [O, I]`, `bias [O]` to `[..., O]`; summed in f32 and rounded once, bias included."""
    # As a matrix: torch rounds before the bias too where `x` has more dimensions and is strided.
    result = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), w, bias)
    return result.view(*x.shape[:-1], w.shape[0])


FEWEST_ROWS: Final = {torch.float32: 12, torch.bfloat16: 4}
"""With fewer rows the library's gemm changes its order of summation (gemv, or rows split among threads), so that a token's bits would
depend on how many share its step. On some processors it does so for more rows, too; the C++ kernels never do."""


@kernel("ts::linear", name="torch", target=ANY, when=one_float_type, cost=gemm_bound)
def linear_torch(x: Tensor, w: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """One gemm into `out`; `x` may be a strided view of a wider buffer. Few rows are padded with zeros."""
    if x.dim() != 2:
        x, out = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    rows = x.shape[0]
    fewest = FEWEST_ROWS.get(x.dtype, 0)
    if rows < fewest and x.device.type == "cpu":
        padded = x.new_zeros(fewest, x.shape[1])
        padded[:rows] = x
        out.copy_(_product(padded, w, bias, None)[:rows])
    else:
        _product(x, w, bias, out)


def _product(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    return torch.mm(x, w.t(), out=out) if bias is None else torch.addmm(bias, x, w.t(), out=out)
