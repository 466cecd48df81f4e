"""A node as the registry is asked for it, and what it says of nodes that one op may stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.fx

from tsc.graph import layout_of, op_of, tensor_operands, type_of, written_cache
from tsc.mesh import Mesh
from tskernels.registry import REFERENCE, Call, Operand, explain
from tskernels.target import Target

Layouts = Mapping[torch.fx.Node, str]


def call_of(mesh: Mesh, node: torch.fx.Node, layouts: Layouts | None = None) -> Call:
    """Local operand shapes, dynamic extents as None. layouts: of weights, as if they were stored so."""
    operands = tuple(operand_of(mesh, n, layouts) for n in tensor_operands(node))
    return Call(f"ts::{op_of(node)}", operands, dict(node.kwargs))


def operand_of(mesh: Mesh, node: torch.fx.Node, layouts: Layouts | None = None) -> Operand:
    """What a node's value is to what reads it."""
    kind = type_of(node)
    shape = tuple(d if isinstance(d, int) else None for d in kind.local(mesh))
    if _is_cache(written_cache(node)):
        shape = (None, *shape)  # the second dimension of a cache is a page's rows
    return Operand(kind.dtype, shape, (layouts or {}).get(node, layout_of(node)))


def _is_cache(node: torch.fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["input"].kind == "cache"


def is_quicker(fused: Call, nodes: Sequence[torch.fx.Node], mesh: Mesh, target: Target) -> bool:
    """Whether the target has a kernel for one op that is predicted to take less time than those of the nodes that it would stand for."""
    best = explain(fused, target)[0]
    if best.reason is not None or best.kernel.name == REFERENCE:
        return False
    return best.cost_seconds < sum(explain(call_of(mesh, node), target)[0].cost_seconds for node in nodes)
