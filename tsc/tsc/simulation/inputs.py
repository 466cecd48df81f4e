"""What a simulated run is given: steps as a scheduler would plan them, and random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tsc.graph import Program, step_name
from tsc.weights import rank_block, stored_weights

PAGES = 8
PAGE_SIZE = 4


def step(
    ids: Sequence[Sequence[int]], lengths: Sequence[int], *, multiple: int = 4, groups: int = 1, windows: Sequence[int] = ()
) -> dict[str, Tensor]:
    """A step of up to two sequences that have `lengths` tokens with these new ones; sequence s has every second page, from s, and in
    the caches of each of `windows` other ones; of states it has page s.

    As a scheduler lays it out: each of `groups` groups of ranks has an equal block of the rows, sequence s lies in that of group s modulo
    them, and the tokens are a multiple of `multiple`. Rows that pad write to the last page, which is no sequence's."""
    blocks: list[list[int]] = [[] for _ in range(groups)]
    for sequence in range(len(ids)):
        blocks[sequence % groups].append(sequence)
    unit = max(1, multiple // groups)
    fullest = max(sum(len(ids[s]) for s in block) for block in blocks)
    rows = -(-fullest // unit) * unit
    tokens, positions = ([0] * rows * groups for _ in range(2))
    slots = {window: [PAGES * PAGE_SIZE - 1] * rows * groups for window in (0, *windows)}
    spans = [[0, 0]] * len(ids)
    for group, block in enumerate(blocks):
        first = group * rows
        for sequence in block:
            new, length = ids[sequence], lengths[sequence]
            spans[sequence] = [first, first + len(new)]
            for row, (token, position) in enumerate(zip(new, range(length - len(new), length), strict=True), first):
                tokens[row], positions[row] = token, position
                for shift, rows_of_window in enumerate(slots.values()):
                    rows_of_window[row] = _page(sequence, position // PAGE_SIZE, shift) * PAGE_SIZE + position % PAGE_SIZE
            first += len(new)
    inputs = {
        "ids": tokens,
        "positions": positions,
        "last": [end - 1 for _, end in spans],
        "spans": spans,
        "lengths": lengths,
        "states": [~s if len(new) == length else s for s, (new, length) in enumerate(zip(ids, lengths, strict=True))],
    }
    for shift, (window, rows_of_window) in enumerate(slots.items()):
        inputs[step_name("slots", window)] = rows_of_window
        inputs[step_name("tables", window)] = [[_page(s, i, shift) for i in range(PAGES // 2)] for s in range(len(ids))]
    return {name: torch.tensor(value, dtype=torch.int32) for name, value in inputs.items()}


def _page(sequence: int, index: int, shift: int) -> int:
    """Of two sequences of up to three pages no two have the same one, or the last; `shift` tells the groups of caches apart."""
    return (2 * index + sequence + shift) % (PAGES - 1)


def random_weights(program: Program, seed: int = 0) -> dict[str, Tensor]:
    """Checkpoint tensors in f64, by name; the same for every program of one model."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        part.tensor: [math.prod(f.size or 0 for f in d) for d in part.type.shape.dimensions()]
        for weight in stored_weights(program)
        for part in weight.parts
    }
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) / math.sqrt(s[-1]) for n, s in sorted(shapes.items())}


def rank_weights(program: Program, weights: Mapping[str, Tensor], coordinate: dict[str, int]) -> dict[str, Tensor]:
    """A rank's blocks, joined where weights are, by the name that the artifact would have."""
    return {
        w.name: torch.cat([rank_block(weights[p.tensor], p.type, program.mesh, coordinate) for p in w.parts])
        for w in stored_weights(program)
    }
