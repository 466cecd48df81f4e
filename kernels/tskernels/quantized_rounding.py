"""Floats rounded to few bits, for the least squared error: of the weights, or of what they add to a product.

A weight's *importance* is the mean square of the input that it is multiplied with: an error of the weight, squared and times that, is
what it adds to the squared error of an output, as far as inputs are independent.

Legend: O outputs and K inputs of a weight; G groups of 32, of which a block has some.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch import Tensor

from tskernels.quantized_parts import GROUP, Parts

_STEPS: Final = tuple(n / 2 for n in range(26, 37))
"""How many steps the range of a group may have. With less than 15 not all codes are used, as where weights lie on a grid already; with more
the steps are finer, and what lies outside of them is clipped."""
_FITS: Final = 2
"""How often the best line is fitted again to the codes that it gives."""
_BLOCK: Final = 4096
"""Groups that are looked at together: what is computed of them stays in a core's cache."""
_LARGEST_HALF: Final = 65504.0


def round_int8(w_OK: Tensor) -> Parts:
    """One scale an output; the largest weight is exact."""
    scale = w_OK.abs().amax(1, keepdim=True) / 127
    codes = (w_OK / torch.where(scale == 0, 1, scale)).round_().clamp_(-127, 127) + 128
    return Parts(codes.to(torch.uint8), (scale,), ())


def round_int4(w_OK: Tensor, importance_K: Tensor | None = None) -> Parts:
    """A scale and a minimum of f16 for each group of 32. importance: positive; without it all inputs count alike."""
    outputs, inner = w_OK.shape
    missing = -inner % GROUP
    counts_K = torch.ones(inner) if importance_K is None else importance_K
    # What nobody reads repeats a weight of its group, and so costs no step.
    x = torch.cat([w_OK, w_OK[:, -1:].expand(-1, missing)], 1).view(-1, GROUP) if missing else w_OK.reshape(-1, GROUP)
    counts = torch.nn.functional.pad(counts_K, (0, missing)).view(-1, GROUP)
    codes = torch.empty(x.shape, dtype=torch.uint8)
    lines = torch.empty(2, x.shape[0], dtype=torch.float16)

    def fit(first: int) -> None:
        block = slice(first, first + _BLOCK)
        repeated = counts[torch.arange(first, min(first + _BLOCK, len(x))) % len(counts)].T.contiguous()
        found, step, low = _fitted(x[block].T.contiguous(), repeated)
        codes[block] = found.T
        lines[0, block], lines[1, block] = step, low

    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(fit, range(0, len(x), _BLOCK)))
    return Parts(codes.view(outputs, -1), (), (lines[0].view(outputs, -1), lines[1].view(outputs, -1)))


def _fitted(x_32G: Tensor, counts_32G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, and of each group its step and its lowest value: the best of lines through the codes that each division of its range gives."""
    low, high = x_32G.amin(0), x_32G.amax(0)
    width = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    # From 0 to 1, so that all groups are divided alike.
    y = ((x_32G - low) / width).nan_to_num_()
    moments = _Moments(y, counts_32G)
    best = torch.zeros(3, y.shape[1])
    best[2] = moments.mean
    for steps, clipped in _divisions():
        line = moments.fit((y * steps).sub_(clipped).round_().clamp_(0, 15))
        best = torch.where(line[0] > best[0], line, best)
    for _ in range(_FITS):
        line = moments.fit(((y - best[2]) / _divisor(best[1])).round_().clamp_(0, 15))
        best = torch.where(line[0] > best[0], line, best)
    step, first = _in_f16(best[1] * width), _in_f16(low + best[2] * width)
    return ((x_32G - first) / _divisor(step)).nan_to_num_().round_().clamp_(0, 15), step, first


def _divisions() -> Iterator[tuple[float, float]]:
    """Numbers of steps, and how many of them are clipped at the lower end."""
    for steps in _STEPS:
        for half in range(max(int(2 * steps) - 30, 0) + 1):
            yield steps, half / 2


class _Moments:
    """Of values with their counts, for lines through codes."""

    def __init__(self, y_32G: Tensor, counts_32G: Tensor) -> None:
        self._counts = counts_32G
        self._total = counts_32G.sum(0)
        self.mean = (counts_32G * y_32G).sum(0) / self._total
        self._centered = counts_32G * (y_32G - self.mean)

    def fit(self, codes_32G: Tensor) -> Tensor:
        """[3, G]: of the line through the codes with the least squared error how much of the spread of y it explains, its step, and
        where it begins."""
        counted = self._counts * codes_32G
        mean = counted.sum(0) / self._total
        common = (self._centered * codes_32G).sum(0)
        spread = counted.mul_(codes_32G).sum(0) - mean.square() * self._total
        step = torch.where(spread > 1e-6 * self._total, common / spread, 0)
        return torch.stack([step * common, step, self.mean - step * mean])


def _divisor(step: Tensor) -> Tensor:
    return torch.where(step == 0, 1, step)


def _in_f16(x: Tensor) -> Tensor:
    return x.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().float()
