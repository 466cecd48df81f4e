"""Every stage of compilation computes what one rank computes right after lowering, and all ranks the same bits."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from tests.passes.made_up_kernels import MADE_UP, made_up_kernels
from tests.passes.tiny_models import CONFIGS, changes, lowered
from torch import Tensor

from tsc.graph import Program, op_of, sequence_groups, windows
from tsc.simulation.inputs import random_weights, rank_weights, step
from tsc.simulation.interpreter import Interpreter
from tskernels.communicator import MeshCommunicator
from tskernels.simulated import run_ranks
from tskernels.target import gpu
from tspasses.expand_latents import ExpandLatents
from tspasses.fuse_linears import FuseLinears
from tspasses.fuse_qk_rope import FuseQkRope
from tspasses.fuse_residual import FuseResidual
from tspasses.simplify import Simplify
from tspasses.verify import verify

STEPS = (([[3, 60, 17, 8, 33, 2, 41], [5, 5, 63]], [7, 3]), ([[9], [20, 1]], [8, 5]), ([[0], [62]], [9, 6]))
"""Two prompts; a token and a chunk; a token each: the new tokens, and how long the sequences then are."""

MESHES = [({"tp": n}, model) for n in (1, 2, 4) for model in sorted(CONFIGS)]
MESHES += [(mesh, model) for mesh in ({"dp": 2}, {"dp": 4}, {"dp": 2, "tp": 2}) for model in ("data_parallel", "deepseek_v3")]


def run(program: Program, seed: int = 0) -> list[list[Tensor]]:
    """Each rank's logits of every step."""
    weights = random_weights(program, seed)
    steps = [step(*given, groups=sequence_groups(program), windows=windows(program)) for given in STEPS]

    def rank(mesh: MeshCommunicator) -> list[Tensor]:
        coordinate = {name: mesh.coordinate(name) for name in mesh.sizes}
        interpreter = Interpreter(program, mesh, rank_weights(program, weights, coordinate))
        return [interpreter.step(inputs) for inputs in steps]

    return run_ranks({a.name: a.known_size for a in program.mesh.axes}, rank)


@cache
def expected(model: str) -> list[Tensor]:
    [logits] = run(lowered(model, {}))
    return logits


@pytest.mark.parametrize(("mesh", "model"), MESHES, ids=str)
def test_every_stage_gives_the_logits_of_one_rank_and_the_same_bits_on_all(model: str, mesh: dict[str, int]) -> None:
    for stage, program, _ in changes(model, mesh):
        results = run(program)
        for logits in results:
            for found, wanted, first in zip(logits, expected(model), results[0], strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11, msg=f"after {stage}: {{}}".format)
                assert torch.equal(found, first), f"after {stage}: ranks differ"


@pytest.mark.parametrize("model", ["llama", "deepseek_v3"])
def test_sums_that_are_joined_with_residuals_and_norms_give_the_same_logits(model: str) -> None:
    pytest.importorskip("triton", reason="sums are joined where there is a kernel: pip install tsc-llm[triton]")
    program = FuseResidual(gpu("sm_90a")).run(lowered(model, {"tp": 2}))
    verify(program, "fuse-residual")
    ops = Counter(op_of(n) for g in program.graphs.values() for n in g.nodes if n.op == "call_function")
    assert ops["all_reduce_add"]
    assert ops["all_reduce_add_norm"]
    results = run(program)
    for logits in results:
        for found, wanted, first in zip(logits, expected(model), results[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
            assert torch.equal(found, first), "ranks differ"


@pytest.mark.parametrize("mesh", [{}, {"tp": 2}, {"tp": 4}], ids=str)
@pytest.mark.parametrize(
    ("model", "turning"),
    [("llama", "qk_rope"), ("qwen3", "qk_norm_rope"), ("gemma3", "qk_norm_rope"), ("phi3", "qk_rope"), ("glm4_moe", "qk_norm_rope")],
)
def test_heads_that_turn_together_and_residuals_with_their_norms_give_the_same_logits(
    model: str, turning: str, mesh: dict[str, int]
) -> None:
    program = lowered(model, mesh)
    with made_up_kernels():
        for step in (FuseLinears(), FuseQkRope(MADE_UP), FuseResidual(MADE_UP)):
            program = step.run(program)
            verify(program, step.name)
    ops = Counter(op_of(n) for g in program.graphs.values() for n in g.nodes if n.op == "call_function")
    assert ops[turning]
    assert ops["add_norm"] + ops["all_reduce_add_norm"]
    assert not ops["rope"]
    for logits in run(program):
        for found, wanted in zip(logits, expected(model), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_four_ranks_on_two_heads_split_both_axes() -> None:
    mesh = lowered("llama", {"tp": 4}).mesh
    assert [(a.name, a.size) for a in mesh.axes] == [("kv", 2), ("q", 2)]


def test_logits_are_numbers_that_differ_by_row() -> None:
    for model in CONFIGS:
        for logits in expected(model):
            assert logits.isfinite().all()
            assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("mesh", [{}, {"tp": 2}, {"dp": 2, "tp": 2}], ids=str)
def test_latents_are_expanded_to_the_logits_of_one_rank(mesh: dict[str, int]) -> None:
    program = lowered("deepseek_v3", mesh)
    with made_up_kernels():
        program = ExpandLatents(MADE_UP, expanded_from=3).run(Simplify().run(program))
    verify(program, "expand-latents")
    assert any("expanded_attention" in str(n.target) for graph in program.graphs.values() for n in graph.nodes)
    for logits in run(program):
        for found, wanted in zip(logits, expected("deepseek_v3"), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
