"""The sizes that steps are padded to, so that few shapes are recorded."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_SIZES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
LARGEST: Final = _SIZES[-1]
"""Tokens of a step that is recorded; larger ones take longer to run than to ask for."""


def bucket(size: int, most: int) -> int:
    """The least of the sizes that holds so many, at most `most`; what is larger than all stays."""
    if size > LARGEST:
        return size
    return min(_SIZES[bisect_left(_SIZES, size)], most)
