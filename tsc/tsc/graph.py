"""The graph IR: torch.fx graphs of `ts::` ops, one a distinct layer, whose nodes carry a type, a span and what passes add.

A node's meta: `type` (NodeType or JoinedType), `span`;
`returned`, what the callers of inlined modules call their results; on placeholders `input` (Input); on calls `call` (CallBinding);
after kernel selection `kernel`; after memory planning `storage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.fx

import tskernels.library  # noqa: F401  (defines torch.ops.ts)
from tsc.mesh import Mesh
from tsc.types import Placement, Shape, local_dimensions
from tskernels.layouts import LAYOUTS
from tskernels.registry import ROWS

OpName = str
"""`linear`, without its namespace."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A value's element type, dimensions and placement; its dimensions' groups are the physical ones."""

    shape: Shape
    placement: Placement

    def local(self, mesh: Mesh) -> tuple[int | str, ...]:
        return local_dimensions(self.shape, mesh, self.placement)

    @property
    def dtype(self) -> str:
        return self.shape.dtype

    def text(self, mesh: Mesh) -> str:
        return self.shape.text(mesh, self.placement)


@dataclass(frozen=True, slots=True)
class JoinedType:
    """Values joined along dimension `dim`: what one matmul with several weights gives, and those weights."""

    parts: tuple[NodeType, ...]
    dim: int

    def local(self, mesh: Mesh) -> tuple[int | str, ...]:
        first = list(self.parts[0].local(mesh))
        first[self.dim] = sum(int(p.local(mesh)[self.dim]) for p in self.parts)
        return tuple(first)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    def text(self, mesh: Mesh) -> str:
        return " + ".join(p.text(mesh) for p in self.parts)


GraphType = NodeType | JoinedType
InputKind = Literal["value", "step", "kept", "coordinate", "weight", "cache", "state"]


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A checkpoint tensor below the graph's prefix; the whole of it is `type`'s shape, the rank's block follows from its placement."""

    tensor: str
    type: NodeType


@dataclass(frozen=True, slots=True)
class Input:
    """What a placeholder stands for. name: of a step input, or of what another entry keeps; parts: of a weight, joined along dimension 0;
    axes: of a coordinate; window: of a cache, and of the caches that a step input is about; layout: how a weight or a cache is
    stored (`tskernels/layouts.py`, `cache_layouts.py`)."""

    kind: InputKind
    name: str = ""
    parts: tuple[WeightPart, ...] = ()
    axes: tuple[str, ...] = ()
    window: int = 0
    layout: str = ROWS

    def tensor(self, prefix: str) -> str:
        """The name under which the artifact stores this weight for a call with `prefix`: the checkpoint's names of its parts."""
        name = "+".join(prefix + p.tensor for p in self.parts)
        return f"{name}#{self.layout}" if LAYOUTS[self.layout].unpack is None else name  # the rows have the name


@dataclass(frozen=True, slots=True)
class CallBinding:
    """A call of another graph: its weights are the tensors below `prefix`; its caches are new ones at each call."""

    graph: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a node's result lives: bytes per row of `region`, from `offset`. A call has the frame that its callee's nodes add to."""

    region: Literal["T", "S"]
    offset: int
    frame: tuple[int, int] = (0, 0)


@dataclass
class Program:
    """All graphs of a model for one mesh; `frames` are each graph's arena sizes in bytes per row of T and S."""

    mesh: Mesh
    dtype: str
    entry: str
    graphs: dict[str, torch.fx.Graph]
    frames: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def sequence_groups(program: Program) -> int:
    """How many groups of ranks keep sequences of their own: those over which the pages of caches are split."""
    placement = next((node_type(c).placement for c in (*caches(program), *states(program))), ())
    return program.mesh.size_of([a.name for a, p in zip(program.mesh.active, placement, strict=False) if p == 0])


def windows(program: Program) -> tuple[int, ...]:
    """The windows of its caches, in rising order: caches of one window share pages and block tables."""
    return tuple(sorted({c.meta["input"].window for c in caches(program)} - {0}))


def caches(program: Program) -> Iterator[torch.fx.Node]:
    """The placeholders that stand for caches of pages."""
    return _inputs(program, "cache")


def states(program: Program) -> Iterator[torch.fx.Node]:
    """The placeholders that stand for states, of which a sequence has one page."""
    return _inputs(program, "state")


def _inputs(program: Program, kind: InputKind) -> Iterator[torch.fx.Node]:
    return (n for g in program.graphs.values() for n in g.nodes if n.op == "placeholder" and n.meta["input"].kind == kind)


CACHE_WRITES = ("cache_append", "latent_append")
"""The ops that change a cache and return it."""


def row_of(mesh: Mesh, cache: torch.fx.Node) -> tuple[str, list[int]]:
    """Element type and shape of what a rank's part of a cache holds for a token, or a state for a sequence."""
    return type_of(cache).dtype, [int(d) for d in type_of(cache).local(mesh)[1:]]


def written_cache(node: torch.fx.Node) -> torch.fx.Node:
    """The placeholder of the cache that ops have written to; any other node itself."""
    while node.op == "call_function" and op_of(node) in CACHE_WRITES:
        node = operands(node)[0]
    return node


def window_of(node: torch.fx.Node) -> int:
    """The window of a cache, or of what an op has made of it."""
    window: int = written_cache(node).meta["input"].window
    return window


def layout_of(node: torch.fx.Node) -> str:
    """How an operand is stored: inputs as they say, and a cache that has been written to as before."""
    stored = written_cache(node)
    layout: str = stored.meta["input"].layout if stored.op == "placeholder" else ROWS
    return layout


def step_name(name: str, window: int) -> str:
    """What a graph calls a step input: slots and tables are there once for the caches without a window and once for each window."""
    return f"{name}_w{window}" if window else name


def op_of(node: torch.fx.Node) -> OpName:
    """The `ts::` op that a call_function node runs."""
    return str(node.target._schema.name).removeprefix("ts::")  # type: ignore[union-attr]


def target_of(op: OpName) -> Any:
    """The torch.library overload of an op."""
    return getattr(torch.ops.ts, op).default


def type_of(node: torch.fx.Node) -> GraphType:
    found = node.meta["type"]
    assert isinstance(found, NodeType | JoinedType)
    return found


def node_type(node: torch.fx.Node) -> NodeType:
    """The type of a node that is not joined."""
    found = node.meta["type"]
    assert isinstance(found, NodeType)
    return found


def operands(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The tensor (and coordinate) operands of a node, in the op's order."""
    return [a for a in node.args if isinstance(a, torch.fx.Node)]


def tensor_operands(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The operands that a kernel is given as tensors: all but coordinates."""
    return [n for n in operands(node) if n.op != "placeholder" or n.meta["input"].kind != "coordinate"]


def bound_weights(program: Program) -> Iterator[tuple[str, torch.fx.Node]]:
    """Every weight that a step reads, in that order: the prefix of the call that reads it, and the placeholder that stands for it."""

    def walk(graph: str, prefix: str) -> Iterator[tuple[str, torch.fx.Node]]:
        for node in program.graphs[graph].nodes:
            if node.op == "placeholder" and node.meta["input"].kind == "weight":
                yield prefix, node
            elif node.op == "call_module":
                binding: CallBinding = node.meta["call"]
                yield from walk(binding.graph, binding.prefix)

    return walk(program.entry, "")


def output_node(graph: torch.fx.Graph) -> torch.fx.Node:
    """The node whose value the graph returns."""
    out = next(n for n in graph.nodes if n.op == "output").args[0]
    assert isinstance(out, torch.fx.Node)
    return out
