"""What a simulated run is given: steps as a scheduler would plan them, and random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tsc.graph import Program
from tsc.weights import rank_block, stored_weights

PAGES = 8
PAGE_SIZE = 4


def step(ids: Sequence[Sequence[int]], lengths: Sequence[int], *, multiple: int = 4) -> dict[str, Tensor]:
    """A step of sequences that have `lengths` tokens with these new ones; sequence s of two has every
    second page, from s. Padded to a multiple of `multiple` tokens."""
    starts = [0]
    positions, slots = [], []
    for sequence, (new, length) in enumerate(zip(ids, lengths, strict=True)):
        starts.append(starts[-1] + len(new))
        for position in range(length - len(new), length):
            positions.append(position)
            slots.append((2 * (position // PAGE_SIZE) + sequence) * PAGE_SIZE + position % PAGE_SIZE)
    while len(positions) % multiple:  # as an executor pads a step whose tokens ranks share out; the last page is no sequence's
        positions.append(0)
        slots.append(PAGES * PAGE_SIZE - 1)
    flat = [i for new in ids for i in new]
    inputs = {
        "ids": [*flat, *[0] * (len(positions) - len(flat))],
        "positions": positions,
        "slots": slots,
        "last": [s - 1 for s in starts[1:]],
        "starts": starts,
        "lengths": lengths,
        "tables": [[2 * page + sequence for page in range(PAGES // 2)] for sequence in range(len(ids))],
    }
    return {name: torch.tensor(value, dtype=torch.int32) for name, value in inputs.items()}


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
