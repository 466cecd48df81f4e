"""Which thread block of a latent attention reads which keys: one wave of blocks that end together.

The rows of a sequence are its newest tokens times heads, in *row tiles* of 64; its keys are *tiles* of 64 tokens. The blocks form gangs
of as many as a sequence has row tiles: the members of a gang read the same keys at the same time, each for its own rows, so memory is read
once. Where blocks multiply together, in pairs, they have exactly the same keys and row tiles that are neighbours, and a gang is of pairs.
The tiles of all sequences, one after the other, are cut into as many stretches as there are gangs. Where a cut goes through a sequence, the
blocks on both sides have *splits* of its result, which they join when all are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tskernels.gpu.launch import StepShape
from tskernels.gpu.sizes import SMS, Expression, S, T, value
from tskernels.gpu.splits import absorbed

ROWS: Final = 64
TOKENS: Final = 64
OVERHEAD: Final = 5
"""What an item costs beside its tiles, in tiles, as measured: reading queries, writing the result."""
FIELDS: Final = 12
"""Numbers of an item, in the order of `Item`; `mla_work.cuh` reads them."""


@dataclass(frozen=True, slots=True)
class Item:
    """Keys `first_tile * 64` to before `last_tile * 64` for rows `first_row` to before `first_row + rows` of the queries.

    offset: of first_row among the rows of its sequence; row i of a sequence sees its first `cached + i // heads + 1` keys. Of a row
    tile that is split, the partial results are at `partial + split`, and `counter` counts those that are there; one split writes its
    result itself.
    """

    sequence: int
    first_row: int
    rows: int
    offset: int
    length: int
    cached: int
    first_tile: int
    last_tile: int
    partial: int = 0
    splits: int = 1
    split: int = 0
    counter: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tiles of a sequence that a gang reads."""

    sequence: int
    first_tile: int
    last_tile: int


def plan_splits(
    spans: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    heads: int,
    tokens: int,
    blocks: int,
    overhead: int = OVERHEAD,
    together: int = 1,
) -> list[list[Item]]:
    """The items of each of `blocks` thread blocks, in the order in which it works on them.

    spans: of each sequence the rows of its newest tokens, first and past the last, of `tokens` in the step; rows of no sequence become
    items without keys. overhead: what an item costs beside its tiles, in tiles. together: how many blocks, next to each other and a
    divisor of `blocks`, have the same tiles in the same order, of as many row tiles; some of these may be without rows.
    """
    queries = [(last - first) * heads for first, last in spans]
    row_groups = [-(-rows // (ROWS * together)) for rows in queries]
    gang = min(max(row_groups, default=0) or 1, blocks // together)
    num_gangs = blocks // together // gang
    stretches = cut([-(-length // TOKENS) if rows else 0 for length, rows in zip(lengths, queries, strict=True)], num_gangs, overhead)
    work: list[list[Item]] = [[] for _ in range(blocks)]
    pieces: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for number, owned in enumerate(stretches):
        for place, stretch in enumerate(owned):
            first, last = spans[stretch.sequence]
            cached = lengths[stretch.sequence] - (last - first)
            for group in range(row_groups[stretch.sequence]):
                newest = min((group + 1) * ROWS * together, queries[stretch.sequence]) - 1
                end = min(stretch.last_tile, -(-(cached + newest // heads + 1) // TOKENS))
                if stretch.first_tile < end:  # members change places, so that where sequences have fewer rows none is always idle
                    first_block = (number * gang + (group + place) % gang) * together
                    for member in range(together):
                        part = first_block + member, stretch.first_tile, end
                        pieces.setdefault((stretch.sequence, group * together + member), []).append(part)
    partials = counters = 0
    for (sequence, tile), parts in pieces.items():
        first, last = spans[sequence]
        rows = max(min(ROWS, queries[sequence] - tile * ROWS), 0)
        is_split = len(parts) > 1 and rows > 0
        facts = (sequence, first * heads + tile * ROWS, rows, tile * ROWS, lengths[sequence], lengths[sequence] - (last - first))
        for split, (block, begin, end) in enumerate(parts):
            work[block].append(Item(*facts, begin, end, *((partials, len(parts), split, counters) if is_split else ())))
        if is_split:
            partials += len(parts)
            counters += 1
    unclaimed = _unclaimed(spans, tokens, heads)
    for number, (begin, end) in enumerate(unclaimed):
        work[number % blocks].append(Item(0, begin, end - begin, 0, 0, 0, 0, 0))
    return work


def num_blocks(together: int) -> Expression:
    """Of a launch: as many as the device has multiprocessors, or next to."""
    return SMS // together * together if together > 1 else SMS


def prepare(step: StepShape, *, heads: int, together: int = 1, expanded_from: int = 0) -> npt.NDArray[np.int32]:
    """The list of work of a step, for `num_blocks`; sequences that are expanded get zeros."""
    step = absorbed(step, expanded_from)
    blocks = value(num_blocks(together), step.sizes)
    work = plan_splits(step.spans, step.lengths, heads, step.sizes["T"], blocks, together=together)
    return np.array(encode(work), np.int32)


def most_numbers(heads: int, together: int = 1) -> Expression:
    """That `prepare` gives for a step: a row tile of each sequence may be full or not, with others up to `together`, and so may be that of
    rows of no sequence before each; cuts make at most an item more a block."""
    return SMS + 4 + (T * heads // ROWS + S * (1 + together) + SMS + 2) * FIELDS


def cut(tiles: Sequence[int], parts: int, overhead: int) -> list[list[Stretch]]:
    """Cut sequences of so many tiles into at most `parts` lists of stretches, so that the longest list is as short as can be: the sum of
    its tiles, and `overhead` for each stretch. Sequences keep their order."""
    total = sum(count + overhead for count in tiles if count)
    limit = max(-(-total // parts), overhead + 1)
    while (found := _fill(tiles, parts, overhead, limit)) is None:
        limit += 1
    return found


def _fill(tiles: Sequence[int], parts: int, overhead: int, limit: int) -> list[list[Stretch]] | None:
    """Fill one list after the other up to `limit`; None where that takes more than `parts`."""
    lists: list[list[Stretch]] = [[]]
    room = limit
    for sequence, count in enumerate(tiles):
        done = 0
        while done < count:
            if room <= overhead:
                if len(lists) == parts:
                    return None
                lists.append([])
                room = limit
            taken = min(count - done, room - overhead)
            lists[-1].append(Stretch(sequence, done, done + taken))
            done += taken
            room -= taken + overhead
    return lists


def _unclaimed(spans: Sequence[tuple[int, int]], tokens: int, heads: int) -> list[tuple[int, int]]:
    """Rows of queries that are of no sequence, in pieces of at most 64."""
    found: list[tuple[int, int]] = []
    at = 0
    for first, last in [*sorted(span for span in spans if span[0] < span[1]), (tokens, tokens)]:
        found += [(row, min(row + ROWS, first * heads)) for row in range(at * heads, first * heads, ROWS)]
        at = max(at, last)
    return found


def encode(work: Sequence[Sequence[Item]]) -> list[int]:
    """For the kernel: where the items of each block begin, and where the last ends, up to a multiple of four numbers; then the items."""
    begins = [0]
    for items in work:
        begins.append(begins[-1] + len(items))
    begins += [0] * (-len(begins) % 4)
    for items in work:
        for item in items:
            begins += [
                item.sequence,
                item.first_row,
                item.rows,
                item.offset,
                item.length,
                item.cached,
                item.first_tile,
                item.last_tile,
                item.partial,
                item.splits,
                item.split,
                item.counter,
            ]
    return begins
