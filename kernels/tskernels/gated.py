"""Two products of one value, of which one gates the other: the first half of a gated MLP."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tskernels.activation import gelu, gelu_tanh, silu
from tskernels.cost import composed, gemm_bound, matmul_bound
from tskernels.dtypes import compute_dtype
from tskernels.linear import linear, linear_torch
from tskernels.registry import kernel, one_float_type, op
from tskernels.target import ANY

_ACTIVATIONS: Final = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


@op("ts::gated_linear", cost=matmul_bound)
def gated_linear(x: Tensor, w: Tensor, activation: str) -> Tensor:
    """`x [..., I]`, `w [2*F, I]` to `[..., F]`: `activation` of the products with the first F rows, times those with the others; in f32,
    rounded once."""
    wide = compute_dtype(x.dtype)
    gate, up = linear(x.to(wide), w.to(wide)).chunk(2, -1)
    return (_ACTIVATIONS[activation](gate) * up).to(x.dtype)


@kernel("ts::gated_linear", name="torch", target=ANY, when=one_float_type, cost=composed(4, gemm_bound))
def gated_linear_torch(x: Tensor, w: Tensor, activation: str, *, out: Tensor) -> None:
    """One gemm, which rounds to the type of `x`; in f32 from there on."""
    joint = x.new_empty(*x.shape[:-1], w.shape[0])
    linear_torch(x, w, out=joint)
    gate, up = joint.to(compute_dtype(x.dtype)).chunk(2, -1)
    torch.mul(_ACTIVATIONS[activation](gate), up, out=out)
