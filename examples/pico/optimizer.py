"""Muon for matrices (Jordan et al., 2024): momentum, whose singular values are then made equal. AdamW, torch's own, for everything else.

torch's Muon computes in bf16, which most processors multiply more slowly than f32, and one matrix at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_STEPS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon:
    def __init__(self, matrices: Sequence[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        self._momentum, self._decay = momentum, weight_decay
        self._groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self._groups[tuple(matrix.shape)].append(matrix)
        self._moving = {shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for shape, group in self._groups.items():
            gradients = torch.stack([matrix.grad if matrix.grad is not None else torch.zeros_like(matrix) for matrix in group])
            moving = self._moving[shape].lerp_(gradients, 1 - self._momentum)
            update = orthogonal(gradients.lerp(moving, self._momentum))
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - rate * self._decay).sub_(change, alpha=scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns], each with its singular values brought near 1 by Newton and Schulz's iteration."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if is_tall else x
