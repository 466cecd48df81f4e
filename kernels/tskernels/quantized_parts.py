"""A quantized weight taken apart: its codes, and what scales and shifts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

GROUP: Final = 32
"""Codes of a group."""


@dataclass(frozen=True, slots=True)
class Parts:
    """codes: u8 [O, K], never negative; block: [O, blocks] each; group: [O, groups] each."""

    codes: Tensor
    block: tuple[Tensor, ...]
    group: tuple[Tensor, ...]
