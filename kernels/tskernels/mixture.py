"""Mixtures of experts: the routing of tokens, and the experts' gated MLPs.

T tokens, N experts, F inner and D outer elements.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tskernels.cost import composed, experts_bound, experts_gemm_bound
from tskernels.dtypes import compute_dtype
from tskernels.linear import FEWEST_ROWS
from tskernels.registry import kernel, op
from tskernels.target import ANY


@op("ts::route")
def route(
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    top_k: int,
    score: str,
    normalize: bool,
    scale: float,
    groups: int,
    top_groups: int,
    group_best: int,
) -> Tensor:
    """`logits [T, N]` to the weight of each expert, `[T, N]`, zero for all but `top_k` of a token.

    An expert's score is the `softmax` or `sigmoid` of its logit. The choice is among `score + bias [N]`: first of the `top_groups` of
    `groups` whose best `group_best` experts have the largest sum, then of the `top_k` best experts in them. The weights are the
    scores without the bias, divided by their sum where `normalize`, times `scale`; in f32, rounded once. Of equals the first wins.
    """
    wide = logits.to(compute_dtype(logits.dtype))
    scores = wide.sigmoid() if score == "sigmoid" else wide.softmax(-1)
    ranked = scores if bias is None else scores + bias.to(scores.dtype)
    if groups > 1:
        grouped = ranked.view(-1, groups, ranked.shape[-1] // groups)
        best = grouped.sort(dim=-1, descending=True, stable=True).values[..., :group_best].sum(-1)
        chosen = best.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, chosen, True)
        ranked = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    experts = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return torch.zeros_like(scores).scatter_(1, experts, weights * scale).to(logits.dtype)


@kernel("ts::route", name="torch", target=ANY, cost=composed(8))
def route_torch(
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    top_k: int,
    score: str,
    normalize: bool,
    scale: float,
    groups: int,
    top_groups: int,
    group_best: int,
    out: Tensor,
) -> None:
    """The reference into `out`: a sort of N numbers a token is little beside the experts."""
    choice = {"top_k": top_k, "groups": groups, "top_groups": top_groups, "group_best": group_best}
    out.copy_(route(logits, bias, score=score, normalize=normalize, scale=scale, **choice))


def gate_with(gate: Tensor, up: Tensor, alpha: float, limit: float, offset: float) -> Tensor:
    """`g * sigmoid(alpha * g) * (u + offset)`: where there is a limit, of `gate` up to it and `up` within it."""
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    activated = functional.silu(gate) if alpha == 1 else gate * torch.sigmoid(alpha * gate)
    return activated * (up + offset if offset else up)


@op("ts::experts", cost=experts_bound)
def experts(
    x: Tensor,
    weights: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    limit: float = 0.0,
    offset: float = 0.0,
) -> Tensor:
    """`x [T, D]`, `weights [T, N]`, `gate`, `up [N, F, D]`, `down [N, D, F]`, of each a bias or of none, to `[T, D]`: the sum over experts
    of `weights[:, n] * down[n](gate_with(gate[n](x), up[n](x)))`, in the order of the experts, in f32, rounded once."""
    dtype = compute_dtype(x.dtype)
    wide = x.to(dtype)
    result = torch.zeros(x.shape[0], down.shape[1], dtype=dtype, device=x.device)
    for n in range(gate.shape[0]):
        made = [_expert(wide, w, bias, n) for w, bias in ((gate, gate_bias), (up, up_bias))]
        inner = gate_with(made[0], made[1], alpha, limit, offset)
        result += weights[:, n, None].to(dtype) * _expert(inner, down, down_bias, n)
    return result.to(x.dtype)


def _expert(x: Tensor, w: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """A product with expert n's, in the type of `x`."""
    return functional.linear(x, w[n].to(x.dtype), None if bias is None else bias[n].to(x.dtype))


@kernel("ts::experts", name="torch", cost=experts_gemm_bound)
def experts_torch(
    x: Tensor,
    weights: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    limit: float = 0.0,
    offset: float = 0.0,
    out: Tensor,
) -> None:
    """Each expert runs on the tokens that have a weight for it; few rows are padded with zeros, as `linear` does, so that a token's
    bits do not depend on which others share its experts."""
    dtype = compute_dtype(x.dtype)
    result = torch.zeros(out.shape, dtype=dtype)
    fewest = FEWEST_ROWS.get(x.dtype, 0)

    def product(rows: Tensor, w: Tensor, bias: Tensor | None, n: int) -> Tensor:
        return torch.mm(rows, w[n].t()) if bias is None else torch.addmm(bias[n], rows, w[n].t())

    for n in torch.nonzero(weights.any(0)).flatten().tolist():
        tokens = torch.nonzero(weights[:, n]).flatten()
        rows = x.new_zeros(max(fewest, len(tokens)), x.shape[1])
        rows[: len(tokens)] = x[tokens]
        inner = gate_with(product(rows, gate, gate_bias, n), product(rows, up, up_bias, n), alpha, limit, offset)
        made = product(inner, down, down_bias, n)[: len(tokens)].to(dtype)
        result.index_add_(0, tokens, made.mul_(weights[tokens, n, None]))
    out.copy_(result)
