"""Rounding to 4 bits beside the best that any step and minimum of a group could do, which is searched for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tskernels.quantized_parts import Parts
from tskernels.quantized_rounding import round_int4


def values(parts: Parts) -> Tensor:
    """[O, K], of whole groups."""
    step, low = (plane.float()[..., None] for plane in parts.group)
    return (parts.codes.float().view(*step.shape[:2], 32) * step + low).flatten(1)


def least_error(x: Tensor, counts: Tensor) -> float:
    """Of one group: from 161 steps and 120 minima each, every line fitted to its codes until that changes little."""
    low, width = x.min(), x.max() - x.min()
    mean = (counts * x).sum() / counts.sum()
    step = (width / torch.linspace(10, 30, 161)).repeat_interleave(120)
    first = (low - 2 * step) + torch.linspace(0, 1, 120).repeat(161) * (width - 9 * step).clamp(min=4 * step.min())
    for _ in range(4):
        codes = ((x - first[:, None]) / step[:, None]).round().clamp(0, 15)
        middle = (codes * counts).sum(1) / counts.sum()
        centered = codes - middle[:, None]
        spread, common = (counts * centered.square()).sum(1), (counts * centered * (x - mean)).sum(1)
        fitted = common / spread.clamp(min=1e-12)
        step = torch.where(fitted > 0, fitted, step)
        first = mean - step * middle
    return float((counts * (codes * step[:, None] + first[:, None] - x).square()).sum(1).min())


@pytest.mark.parametrize(("spread", "bound"), [(0, 1.05), (1, 1.1), (2, 1.15)])
def test_the_error_is_near_the_least_that_there_is(spread: float, bound: float) -> None:
    """spread: of the logarithm of the importance."""
    random = torch.Generator().manual_seed(0)
    w = torch.randn(24, 32, generator=random) * 0.05
    importance = (spread * torch.randn(32, generator=random)).exp()
    errors = (importance * (values(round_int4(w, importance)) - w).square()).sum(1)
    least = sum(least_error(x, importance) for x in w)
    assert 0.99 * least < float(errors.sum()) < bound * least


def test_an_importance_that_is_the_same_for_all_changes_nothing() -> None:
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    plain, found = round_int4(w), round_int4(w, torch.full((96,), 4.0))
    assert torch.equal(plain.codes, found.codes)
    assert all(torch.equal(a, b) for a, b in zip(plain.group, found.group, strict=True))


def test_what_counts_more_is_nearer() -> None:
    random = torch.Generator().manual_seed(2)
    w, importance = torch.randn(256, 64, generator=random), torch.ones(64)
    importance[::8] = 100
    plain, found = ((values(p) - w).square().mean(0) for p in (round_int4(w), round_int4(w, importance)))
    assert found[::8].mean() < 0.5 * plain[::8].mean()
    assert found.mean() > plain.mean()


@pytest.mark.parametrize("used", [14, 15, 16])
def test_weights_that_lie_on_a_grid_stay(used: int) -> None:
    """As those of a file of 4 bits, whose groups do not use every code."""
    random = torch.Generator().manual_seed(used)
    codes = torch.randint(0, used, (64, 4, 32), generator=random).float()
    codes[..., 0], codes[..., 1] = 0, used - 1
    step, low = torch.rand(64, 4, 1, generator=random) + 0.5, torch.randn(64, 4, 1, generator=random)
    w = (codes * step + low).flatten(1)
    error = (values(round_int4(w)) - w).abs().max()
    assert error < 0.01  # f16 of the minimum and of 15 steps


def test_inputs_beyond_the_last_group_count_for_nothing() -> None:
    random = torch.Generator().manual_seed(3)
    w, importance = torch.randn(32, 40, generator=random), torch.rand(40, generator=random) + 0.1
    whole, last = round_int4(w, importance), round_int4(w[:, 32:], importance[32:])
    assert torch.equal(whole.codes[:, 32:], last.codes)
    assert whole.codes.shape == (32, 64)


def test_rows_without_spread_and_of_any_size_stay_finite() -> None:
    w = torch.zeros(4, 32)
    w[1], w[2], w[3, 5] = 3.5, -1e30, 1e-30
    found = values(round_int4(w))
    assert found.isfinite().all()
    assert found[0].eq(0).all()
    assert found[1].eq(3.5).all()
