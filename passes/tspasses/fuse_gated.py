"""Make one op of the first half of a gated MLP: two products of one value, an activation of the one, and their product.

Assumes: weights are checkpoint tensors, so that joining them costs nothing at run time. Runs before FuseLinears, which would join the
two with whatever else reads the value.
Guarantees: where anything but the other reads a part, the graph stays as it is.
Does not: fuse what is placed in two ways, weights in two layouts, or what a rank has only a summand of: an activation of that is none of
the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from tsc.graph import Program, layout_of, op_of, operands, target_of, type_of
from tskernels.layouts import gated
from tskernels.registry import ROWS
from tspasses.joined_weights import is_private, join, tensor_of

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
Pair = tuple[str, str, str, str]
"""An entry, one of its graphs, and what the checkpoint calls the gate and what it gates."""


@dataclass(frozen=True, slots=True)
class FuseGated:
    """pairs: to fuse, where several programs must store the same; None: all that there are."""

    pairs: frozenset[Pair] | None = None
    name: ClassVar[str] = "fuse-gated"

    def agree(self, programs: Sequence[Program]) -> FuseGated:
        """Fuse what can be in each of an entry's programs."""
        found = [{_pair(p.entry, name, mlp) for name, graph in p.graphs.items() for mlp in _gated(graph)} for p in programs]
        seen = Counter(pair for pairs in found for pair in pairs)
        entries = Counter(p.entry for p in programs)
        return replace(self, pairs=frozenset(pair for pair, count in seen.items() if count == entries[pair[0]]))

    def run(self, program: Program) -> Program:
        for name, graph in program.graphs.items():
            for mlp in list(_gated(graph)):
                if self.pairs is None or _pair(program.entry, name, mlp) in self.pairs:
                    _fuse(graph, mlp)
            graph.lint()
        return program


@dataclass(frozen=True, slots=True)
class _Gated:
    product: torch.fx.Node
    activation: torch.fx.Node
    gate: torch.fx.Node
    up: torch.fx.Node


def _gated(graph: torch.fx.Graph) -> Iterator[_Gated]:
    for node in graph.nodes:
        if node.op == "call_function" and op_of(node) == "mul" and len(operands(node)) == 2:
            for activation, up in (operands(node), reversed(operands(node))):
                if _is_activation(activation) and _is_linear(up) and _is_linear(gate := operands(activation)[0]):
                    weights = [operands(n)[1] for n in (gate, up)]
                    same = type_of(gate) == type_of(up) == type_of(node) and type_of(weights[0]) == type_of(weights[1])
                    together = layout_of(weights[0]) == layout_of(weights[1]) and gated(layout_of(weights[0])) is not None
                    if same and together and operands(gate)[0] is operands(up)[0]:
                        yield _Gated(node, activation, gate, up)


def _is_activation(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and op_of(node) in ACTIVATIONS and len(node.users) == 1


def _is_linear(node: torch.fx.Node) -> bool:
    is_product = node.op == "call_function" and op_of(node) == "linear" and len(operands(node)) == 2
    return is_product and len(node.users) == 1 and is_private(operands(node)[1])


def _pair(entry: str, graph: str, mlp: _Gated) -> Pair:
    return entry, graph, tensor_of(operands(mlp.gate)[1]), tensor_of(operands(mlp.up)[1])


def _fuse(graph: torch.fx.Graph, mlp: _Gated) -> None:
    x, gate = operands(mlp.gate)
    up = operands(mlp.up)[1]
    mlp.product.target = target_of("gated_linear")
    mlp.product.args = (x, join(graph, (gate, up), gated(layout_of(gate)) or ROWS))
    mlp.product.kwargs = {"activation": op_of(mlp.activation)}
    for node in (mlp.activation, mlp.gate, mlp.up, gate, up):
        graph.erase_node(node)
