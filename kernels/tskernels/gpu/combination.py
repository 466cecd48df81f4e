"""The launch that joins the parts of attention that splits have left (`splits.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tskernels.gpu.launch import Argument, Launch, Number
from tskernels.gpu.sizes import Dimension, Expression, cdiv, smaller
from tskernels.gpu.triton_entry import only, padded, source

_BLOCKS: Final = 8
"""Thread blocks that share the rows of a tile."""
_AT_ONCE: Final = 8192
"""Elements that one loads at once: of many parts, where it has few rows. Both are as measured on an H100."""
_OWN: Final = 512
"""Elements of a row from which on a block has one alone: as measured on an H100, too, where one sequence has many parts."""
_OF_A_WARP: Final = 512
"""Elements of the result: their sums lie in registers, beside what is loaded."""


def combine(
    arguments: Mapping[str, Argument],
    constants: Mapping[str, Number],
    types: Mapping[str, str],
    parts: Expression,
    rows: int,
    least: int,
) -> Launch:
    """Of at most so many parts a head, in tiles of at most so many rows, and of at least `least` where there are as many. The grid is as
    small as the step allows, since blocks that find nothing to do take their time, too: a tile has two parts, and some rows of a token."""
    tokens, group, some = Dimension(0, 0), int(constants["GROUP"]), _rows(rows, int(constants["PADDED"]))
    grid = (
        smaller(parts // 2, tokens * -(-group // least)),
        int(constants["HEADS"]),
        smaller(-(-rows // some), cdiv(tokens * group, some)),
    )
    elements = some * int(constants["PADDED"])
    at_once, warps = {"ROWS": some, "PARTS": max(1, _AT_ONCE // elements)}, max(2, elements // _OF_A_WARP)
    function, kinds = source("attention", "combine"), only(types, arguments)
    return Launch(function, grid, arguments, {**constants, **at_once}, kinds, warps, 1, dependent=True)


def _rows(rows: int, width: int) -> int:
    """That a block joins of a tile."""
    return padded(-(-rows // _BLOCKS)) if width < _OWN else 1
