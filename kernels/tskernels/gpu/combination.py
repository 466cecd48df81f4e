"""The launch that joins the parts of attention that splits have left (`splits.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tskernels.gpu.launch import Argument, Launch, Number
from tskernels.gpu.sizes import Dimension, Expression, smaller
from tskernels.gpu.triton_entry import only, source

_AT_ONCE: Final = 8192
"""Elements of parts that a thread block loads at once."""
_BLOCKS: Final = 16
"""Thread blocks that share the rows of a tile."""


def combine(
    arguments: Mapping[str, Argument], constants: Mapping[str, Number], types: Mapping[str, str], parts: Expression, least: int
) -> Launch:
    """Of at most so many parts a head, in tiles that have `least` rows where there are as many. The grid is as small as the step allows,
    since blocks that find nothing to do take their time, too: a tile has at least two parts, and some rows of a token."""
    tokens, group = Dimension(0, 0), int(constants["GROUP"])
    grid = (smaller(parts // 2, tokens * -(-group // least)), int(constants["HEADS"]), smaller(_BLOCKS, tokens * group))
    at_once = {"PARTS": max(1, _AT_ONCE // int(constants["PADDED"]))}
    return Launch(source("attention", "combine"), grid, arguments, {**constants, **at_once}, only(types, arguments), 4, 1, dependent=True)
