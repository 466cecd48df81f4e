"""Every stage of compilation computes what one rank computes right after lowering, and all ranks the same bits."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.passes.interpreter import Interpreter
from tests.passes.tiny_models import CONFIGS, lowered, random_weights, rank_weights, stages
from torch import Tensor

from tsc.graph import Program
from tskernels.communicator import MeshCommunicator
from tskernels.simulated import run_ranks


def step(ids: list[list[int]], lengths: list[int]) -> dict[str, Tensor]:
    """A step of sequences that have `lengths` tokens with these new ones; sequence s has every second page, from s."""
    starts = [0]
    positions, slots = [], []
    for sequence, (new, length) in enumerate(zip(ids, lengths, strict=True)):
        starts.append(starts[-1] + len(new))
        for position in range(length - len(new), length):
            positions.append(position)
            slots.append((2 * (position // 4) + sequence) * 4 + position % 4)
    while len(positions) % 4:  # as an executor pads a step whose tokens four ranks share out; the last page is no sequence's
        positions.append(0)
        slots.append(31)
    flat = [i for new in ids for i in new]
    inputs = {
        "ids": [*flat, *[0] * (len(positions) - len(flat))],
        "positions": positions,
        "slots": slots,
        "last": [s - 1 for s in starts[1:]],
        "starts": starts,
        "lengths": lengths,
        "tables": [[2 * page + sequence for page in range(4)] for sequence in range(len(ids))],
    }
    return {name: torch.tensor(value, dtype=torch.int32) for name, value in inputs.items()}


STEPS = (step([[3, 60, 17, 8, 33, 2, 41], [5, 5, 63]], [7, 3]), step([[9], [20, 1]], [8, 5]), step([[0], [62]], [9, 6]))
"""Two prompts; a token and a chunk; a token each."""


def run(program: Program, seed: int = 0) -> list[list[Tensor]]:
    """Each rank's logits of every step."""
    weights = random_weights(program, seed)

    def rank(mesh: MeshCommunicator) -> list[Tensor]:
        coordinate = {name: mesh.coordinate(name) for name in mesh.sizes}
        interpreter = Interpreter(program, mesh, rank_weights(program, weights, coordinate))
        return [interpreter.step(inputs) for inputs in STEPS]

    return run_ranks({a.name: a.known_size for a in program.mesh.axes}, rank)


@cache
def expected(model: str) -> list[Tensor]:
    [logits] = run(lowered(model, 1))
    return logits


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("model", sorted(CONFIGS))
def test_every_stage_gives_the_logits_of_one_rank_and_the_same_bits_on_all(model: str, ranks: int) -> None:
    for stage, program in stages(model, ranks):
        results = run(program)
        for logits in results:
            for found, wanted, first in zip(logits, expected(model), results[0], strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11, msg=f"after {stage}: {{}}".format)
                assert torch.equal(found, first), f"after {stage}: ranks differ"


def test_four_ranks_on_two_heads_split_both_axes() -> None:
    mesh = lowered("llama", 4).mesh
    assert [(a.name, a.size) for a in mesh.axes] == [("kv", 2), ("q", 2)]


def test_logits_are_numbers_that_differ_by_row() -> None:
    for model in CONFIGS:
        for logits in expected(model):
            assert logits.isfinite().all()
            assert not torch.equal(logits[0], logits[1])
