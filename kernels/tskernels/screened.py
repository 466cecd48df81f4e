"""The head of a model for samplers that look at its largest logits alone."""

from __future__ import annotations

from torch import Tensor

from tskernels.cost import gemm_bound, matmul_bound
from tskernels.layouts import SCREEN
from tskernels.linear import linear, linear_torch
from tskernels.registry import Call, kernel, op


@op("ts::screened_linear", cost=matmul_bound)
def screened_linear(x: Tensor, w: Tensor, screen: Tensor, keep: Tensor) -> Tensor:
    """`x [S, I]`, `w [O, I]` to `[S, O]`, as `linear`; but what is not among the `keep[s]` largest of row s may be -inf, where that is not
    0. `screen` is w in the layout `screen`, which says of most outputs that they are not."""
    return linear(x, w)


def _ignored(call: Call) -> bool:
    """x and w of one floating element type."""
    return call.operands[0].dtype == call.operands[1].dtype


@kernel("ts::screened_linear", name="torch", when=_ignored, cost=gemm_bound, layouts={2: SCREEN})
def screened_linear_torch(x: Tensor, w: Tensor, screen: Tensor, keep: Tensor, *, out: Tensor) -> None:
    """All of them: reading less takes a kernel that goes row by row."""
    linear_torch(x, w, out=out)
