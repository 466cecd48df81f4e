"""How the rows of a step's sequences, and the keys that they see, are shared out among thread blocks of an attention kernel.

A sequence's rows are its new tokens times G heads that share a key, token by token; they are cut into *tiles*. Tiles of a sequence with few
rows are narrow, the others wide. Where tiles are fewer than what fills the device, the keys of each are cut into *splits*, of equal
size for all, whose partial results are then combined. Rows of no sequence get tiles that see no key: their results are zeros.

Of latents, sequences that are expanded (`expansion.py`) are no sequences to `work`, and the only ones to `expanded_work`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from tskernels.expansion import expanded
from tskernels.gpu.launch import StepShape

WHOLE_STEP: Final = "WHOLE"
"""Where a rank has some rows of a step: the size that says how many there are, by which what is launched is chosen."""
PART: Final = 16
"""Keys that all splits begin with whole ones of."""
RECORD: Final = 8
"""Numbers of a record. The first one says how many narrow splits, wide splits and combinations follow, in this order.

A split: sequence; first token of it, a row of the step; first row of the tile and rows of it, counted from that token's first; the
token's position; first key and the key after the last; where its partial result goes, -1 where it is the whole.
A combination: first token; first row of the tile and rows of it; first partial result and how many."""


@dataclass(frozen=True, slots=True)
class _Tile:
    sequence: int
    token: int
    row: int
    rows: int
    position: int
    begin: int
    end: int


def work(
    step: StepShape,
    *,
    heads: int,
    group: int,
    narrow: int,
    wide: int,
    wide_from: int,
    unit: int,
    blocks: int,
    window: int,
    expanded_from: int = 0,
    wide_blocks: int = 0,
    wide_newest: int = 1,
) -> npt.NDArray[np.int32]:
    """The records, i32. heads: that have keys of their own, each of which takes all splits; group: G; narrow, wide: rows of tiles;
    wide_from, wide_newest: tokens of a step, and of one of its sequences, from which there are wide ones; unit: keys that a split has a
    multiple of; blocks: a multiprocessor's of narrow tiles alone; wide_blocks: where there are wide ones, 0 for as many."""
    step = absorbed(step, expanded_from)
    tokens = step.sizes.get(WHOLE_STEP, step.sizes["T"])
    newest = max((last - first for first, last in step.spans), default=1)
    some = tokens >= wide_from and max(1, newest) >= wide_newest
    tiles: tuple[list[_Tile], list[_Tile]] = [], []
    for sequence, ((first, last), length) in enumerate(zip(step.spans, step.lengths, strict=True)):
        if first < last:
            rows = (last - first) * group
            is_wide = some and rows > narrow
            tiles[is_wide].extend(_tiles(sequence, first, last, length, group, wide if is_wide else narrow, window))
    for first, last in _unclaimed(step):
        tiles[some].extend(_tiles(0, first, last, 0, group, wide if some else narrow, 0))
    return _records(tiles, unit, max(1, step.sizes["SMS"] * ((wide_blocks or blocks) if tiles[1] else blocks) // heads))


def absorbed(step: StepShape, expanded_from: int) -> StepShape:
    """With the sequences that are not expanded."""
    chosen = expanded(step.spans, step.lengths, expanded_from)
    return replace(step, spans=[(0, 0) if e else span for e, span in zip(chosen, step.spans, strict=True)])


EXPANSION: Final = 4
"""Numbers of a record of `expansions`. The first one says how many follow. A tile of keys: sequence; first key; keys; where the first of
them lies among all that are expanded."""


def expansions(step: StepShape, *, keys: int, expanded_from: int) -> npt.NDArray[np.int32]:
    """Tiles of `keys` keys of the sequences that are expanded, i32."""
    found = [
        [sequence, key, min(keys, step.lengths[sequence] - key), begin + key]
        for sequence, begin in _begins(step, expanded_from).items()
        for key in range(0, step.lengths[sequence], keys)
    ]
    return np.asarray([[len(found), 0, 0, 0], *found], np.int32).reshape(-1)


def expanded_work(step: StepShape, *, heads: int, rows: int, unit: int, blocks: int, expanded_from: int) -> npt.NDArray[np.int32]:
    """Records as of `work`, of tiles of `rows` tokens of the sequences that are expanded; a record's first number is not the sequence but
    where its first key lies among all that are expanded. heads: that are worked on at a time."""
    tiles: list[_Tile] = []
    for sequence, begin in _begins(step, expanded_from).items():
        tiles += _tiles(begin, *step.spans[sequence], step.lengths[sequence], 1, rows, 0)
    return _records((tiles, []), unit, max(1, step.sizes["SMS"] * blocks // heads))


def _begins(step: StepShape, expanded_from: int) -> dict[int, int]:
    """Of each sequence that is expanded, how many keys those before it have."""
    found, past = {}, 0
    for sequence, is_expanded in enumerate(expanded(step.spans, step.lengths, expanded_from)):
        if is_expanded:
            found[sequence] = past
            past += step.lengths[sequence]
    return found


def _records(tiles: Sequence[Sequence[_Tile]], unit: int, room: int) -> npt.NDArray[np.int32]:
    """Of narrow tiles and wide ones. room: splits that fill the device."""
    size = _split_size([t.end - t.begin for t in (*tiles[0], *tiles[1])], unit, room)
    splits: list[list[list[int]]] = [[], []]
    combinations: list[list[int]] = []
    partial = 0
    for kind in (0, 1):
        for t in tiles[kind]:
            count = max(1, -(-(t.end - t.begin) // size))
            for index in range(count):
                begin = t.begin + index * size
                place = partial + index if count > 1 else -1
                splits[kind].append([t.sequence, t.token, t.row, t.rows, t.position, begin, min(begin + size, t.end), place])
            if count > 1:
                combinations.append([t.token, t.row, t.rows, partial, count, 0, 0, 0])
                partial += count
        splits[kind].sort(key=lambda s: s[5] - s[6])  # the longest first, so that none is begun when the others end
    head = [len(splits[0]), len(splits[1]), len(combinations), 0, 0, 0, 0, 0]
    return np.asarray([head, *splits[0], *splits[1], *combinations], np.int32).reshape(-1)


def _tiles(sequence: int, first: int, last: int, length: int, group: int, size: int, window: int) -> list[_Tile]:
    found = []
    count, position = (last - first) * group, length - (last - first)
    for row in range(0, count, size):
        rows = min(size, count - row)
        oldest, newest = position + row // group, position + (row + rows - 1) // group
        begin = max(0, oldest - window + 1) // PART * PART if window else 0
        found.append(_Tile(sequence, first, row, rows, position, begin if length else 0, newest + 1 if length else 0))
    return found


def _unclaimed(step: StepShape) -> list[tuple[int, int]]:
    gaps, past = [], 0
    for first, last in sorted(span for span in step.spans if span[0] < span[1]):
        if first > past:
            gaps.append((past, first))
        past = last
    if past < step.sizes["T"]:
        gaps.append((past, step.sizes["T"]))
    return gaps


def _split_size(keys: list[int], unit: int, room: int) -> int:
    """The smallest multiple of unit at which there are no more splits than there is room for, or than there are tiles."""
    longest = max(-(-max(keys, default=1) // unit), 1)
    low, high = 1, longest
    most = max(room, len(keys))
    while low < high:
        middle = (low + high) // 2
        if sum(max(1, -(-n // (middle * unit))) for n in keys) <= most:
            high = middle
        else:
            low = middle + 1
    return low * unit
