"""What the kinds of rotary embedding have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_MAGNITUDE: Final = {"yarn": 4, "longrope": 0}
"""Its place among the parameters, for those that have one."""


def turned_width(width: int, fraction: float) -> int:
    """How many elements of a vector turn: the first of them."""
    return int(width * fraction)


def magnitude_of(kind: str, parameters: Sequence[float]) -> float:
    """What cosines and sines are multiplied by."""
    return float(parameters[_MAGNITUDE[kind]]) if kind in _MAGNITUDE else 1.0
