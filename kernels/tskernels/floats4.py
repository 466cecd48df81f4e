"""Floats of four bits. Imports no torch."""

from __future__ import annotations

from typing import Final

E2M1_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What their codes stand for: a sign, two bits of exponent, one of mantissa."""
