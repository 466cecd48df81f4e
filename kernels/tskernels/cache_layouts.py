"""How a cache may be stored: by rows, as bytes with scales, or in fp8. Imports no torch.

A layout says nothing of what a cache is: its type and shape stay those of its rows, `[pages, page_size, 2, K, E]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from tskernels.registry import ROWS

INT8_CACHE: Final = "int8_cache"
FP8_CACHE: Final = "fp8_cache"
"""What the layouts' bytes are is said in `int8_cache.py` and `fp8_cache.py`, which need torch."""
SCALE_BYTES: Final = 4

Sizes = Sequence[int]


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """takes: whether caches of an element type can be stored so, given what they hold for a token, [2, K, E] or another; stored: element
    type and shape of what is then stored for it; wanted: what it takes, in words."""

    name: str
    takes: Callable[[str, Sizes], bool]
    stored: Callable[[str, Sizes], tuple[str, tuple[int, ...]]]
    wanted: str = "any cache"


def _takes_int8(dtype: str, row: Sizes) -> bool:
    # Of an even width, so that scales lie where f32 may.
    return dtype in ("bf16", "f32") and len(row) == 3 and row[-1] > 0 and row[-1] % 2 == 0


def _int8(dtype: str, row: Sizes) -> tuple[str, tuple[int, ...]]:
    return "u8", (prod(row[:-1]) * (row[-1] + SCALE_BYTES),)


CACHE_LAYOUTS: Final[Mapping[str, CacheLayout]] = {
    entry.name: entry
    for entry in (
        CacheLayout(ROWS, lambda dtype, row: True, lambda dtype, row: (dtype, tuple(row))),
        CacheLayout(INT8_CACHE, _takes_int8, _int8, "keys and values [2, K, E] in f32 or bf16, of an even E"),
        CacheLayout(FP8_CACHE, lambda dtype, row: dtype != "f64", lambda dtype, row: ("f8e4m3", tuple(row)), "caches of f32, bf16 or f16"),
    )
}
