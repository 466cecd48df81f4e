"""A model's per-rank programs on n simulated ranks, beside the one-device program: what every module returns is compared.

In f64 with random weights, so that what differs is a wrong placement and not rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsc.diagnostics import CompileError, Diagnostic
from tsc.front import ModelSource, place_model, require_nothing_kept
from tsc.graph import NodeType, Program, op_of, sequence_groups, windows
from tsc.mesh import Mesh
from tsc.simulation.inputs import random_weights, rank_weights, step
from tsc.simulation.interpreter import Interpreter
from tsc.weights import stored_weights
from tskernels.communicator import MeshCommunicator
from tskernels.simulated import run_ranks
from tspasses.lower import lower
from tspasses.placed import Options
from tspasses.transitions import COLLECTIVES
from tspasses.verify import verify

TOLERANCE = 1e-9
MOST_BYTES = 2 << 30
"""Of weights in f64: a simulation holds them once whole and once in blocks."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a call of a module returned, or the entry. difference: the largest, relative to the largest value; same_bits: None where
    ranks hold parts of it."""

    name: str
    type: str
    difference: float
    same_bits: bool | None

    @property
    def holds(self) -> bool:
        return self.difference <= TOLERANCE and self.same_bits is not False


@dataclass(frozen=True, slots=True)
class Simulation:
    """ranks: how many; collectives: that a step runs; comparisons: the worst of all steps, in order of the program."""

    ranks: int
    collectives: int
    comparisons: tuple[Comparison, ...]


Seen = list[list[tuple[str, NodeType, Tensor]]]
"""Of each step, the observed values in order."""


def simulate(model: ModelSource, config: Mapping[str, Any], mesh: Mapping[str, int], seed: int = 0, entry: str | None = None) -> Simulation:
    """Run a prompt of two sequences, a chunk beside a token, and a token each. Raises CompileError."""
    several = _lowered(model, config, mesh, entry)
    one = _lowered(model, config, {}, entry)
    size = sum(8 * math.prod(f.size or 0 for f in p.type.shape.factors) for w in stored_weights(one) for p in w.parts)
    if size > MOST_BYTES:
        fix = "pass a config with fewer layers and smaller dimensions: placements do not depend on them"
        text = f"the model's weights are {size / 2**30:.1f} GiB in f64, and a simulation takes {MOST_BYTES >> 30} at most"
        raise CompileError(Diagnostic("TS0506", text, fixes=(fix,)))
    weights = random_weights(one, seed)
    multiple = math.prod(mesh.values())
    steps = _steps(weights, one, seed, multiple, sequence_groups(several))
    [expected] = _run(one, weights, steps)
    found = _run(several, weights, steps)
    comparisons: dict[str, Comparison] = {}
    for at, per_step in enumerate(expected):
        for number, (name, _, wanted) in enumerate(per_step):
            held = [rank[at][number] for rank in found]
            assert {n for n, _, _ in held} == {name}
            made = _compare(several.mesh, name.removeprefix("/"), held[0][1], [value for _, _, value in held], wanted)
            if name not in comparisons or made.difference > comparisons[name].difference or made.same_bits is False:
                comparisons[name] = made
    return Simulation(several.mesh.ranks, _collectives(several), tuple(comparisons.values()))


def _lowered(model: ModelSource, config: Mapping[str, Any], mesh: Mapping[str, int], entry: str | None) -> Program:
    placed = place_model(model, config, mesh, Options("f32"), entry=entry)
    require_nothing_kept(placed)
    program = lower(placed)
    verify(program, "lower")
    return program


def _steps(weights: Mapping[str, Tensor], program: Program, seed: int, multiple: int, groups: int) -> Sequence[Mapping[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = min(w.shape[0] for w in weights.values() if w.dim() == 2)

    def ids(count: int) -> list[int]:
        return torch.randint(0, rows, (count,), generator=generator).tolist()

    prompts, chunk, tokens = [ids(7), ids(3)], [ids(1), ids(2)], [ids(1), ids(1)]
    layout: dict[str, Any] = {"multiple": multiple, "groups": groups, "windows": windows(program)}
    return [step(new, lengths, **layout) for new, lengths in ((prompts, [7, 3]), (chunk, [8, 5]), (tokens, [9, 6]))]


def _run(program: Program, weights: Mapping[str, Tensor], steps: Sequence[Mapping[str, Tensor]]) -> list[Seen]:
    """What each rank saw."""

    def rank(mesh: MeshCommunicator) -> Seen:
        coordinate = {name: mesh.coordinate(name) for name in mesh.sizes}
        interpreter = Interpreter(program, mesh, rank_weights(program, weights, coordinate))
        seen: Seen = []
        for inputs in steps:
            seen.append([])
            interpreter.observe = lambda name, kind, value: seen[-1].append((name, kind, value))
            interpreter.step(inputs)
        return seen

    return run_ranks({a.name: a.known_size for a in program.mesh.axes}, rank)


def _compare(mesh: Mesh, name: str, kind: NodeType, parts: Sequence[Tensor], wanted: Tensor) -> Comparison:
    whole = joined(mesh, kind, parts)
    difference = float((whole - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    replicated = all(place is None for place in kind.placement)
    same = all(torch.equal(p, parts[0]) for p in parts) if replicated else None
    return Comparison(name, kind.text(mesh), difference, same)


def joined(mesh: Mesh, kind: NodeType, parts: Sequence[Tensor]) -> Tensor:
    """The value that the ranks' parts, in rank order, stand for."""
    values = list(parts)
    places = dict(zip((a.name for a in mesh.active), kind.placement, strict=True))
    for axis in reversed(mesh.active):  # minor axes first: neighbours in rank order
        ranks, place = axis.known_size, places[axis.name]
        groups = [values[i : i + ranks] for i in range(0, len(values), ranks)]
        match place:
            case None:
                values = [g[0] for g in groups]
            case "sum":
                values = [torch.stack(g).sum(0) for g in groups]
            case "max":
                values = [torch.stack(g).amax(0) for g in groups]
            case _:
                values = [torch.cat(g, int(place)) for g in groups]
    return values[0]


def _collectives(program: Program) -> int:
    def count(graph: str) -> int:
        total = 0
        for node in program.graphs[graph].nodes:
            if node.op == "call_module":
                total += count(node.meta["call"].graph)
            elif node.op == "call_function":
                total += op_of(node) in COLLECTIVES
        return total

    return count(program.entry)
