"""What placing a model is asked for, and what comes out: each value's placement and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tsc.mesh import Mesh
from tsc.program import Instance, TypedModel
from tsc.spans import Span
from tsc.types import Placement
from tspasses.topology import DEFAULT, Topology, topology
from tspasses.transitions import Move


@dataclass(frozen=True, slots=True)
class Options:
    """dtype: the model's element type; tokens and sequences: the step size that costs are compared at; deny: collectives not to use."""

    dtype: str = "bf16"
    tokens: int = 1
    sequences: int = 1
    topology: Topology = field(default_factory=lambda: topology(DEFAULT))
    deny: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Transition:
    """Value `value` is turned from `source` into `target` right before operation `operation` (their number: the return)."""

    value: int
    source: Placement
    target: Placement
    moves: tuple[Move, ...]
    operation: int
    span: Span
    reason: str


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """placements: of every value as it is computed. needs: of each operation's operands as it reads them. seconds: predicted, of its ops
    and transitions, without what it calls."""

    instance: Instance
    placements: tuple[Placement, ...]
    needs: tuple[tuple[Placement, ...], ...]
    transitions: tuple[Transition, ...]
    result: Placement
    seconds: float


@dataclass(frozen=True)
class PlacedModel:
    typed: TypedModel
    options: Options
    instances: Mapping[str, PlacedInstance] = field(default_factory=dict)

    @property
    def mesh(self) -> Mesh:
        return self.typed.mesh

    @property
    def entry(self) -> PlacedInstance:
        return self.instances[self.typed.entry]
