"""A node as the registry is asked for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch.fx

from tsc.graph import layout_of, op_of, tensor_operands, type_of, written_cache
from tsc.mesh import Mesh
from tskernels.registry import Call, Operand

Layouts = Mapping[torch.fx.Node, str]


def call_of(mesh: Mesh, node: torch.fx.Node, layouts: Layouts | None = None) -> Call:
    """Local operand shapes, dynamic extents as None. layouts: of weights, as if they were stored so."""
    operands = tuple(_operand(mesh, n, layouts or {}) for n in tensor_operands(node))
    return Call(f"ts::{op_of(node)}", operands, dict(node.kwargs))


def _operand(mesh: Mesh, node: torch.fx.Node, layouts: Layouts) -> Operand:
    kind = type_of(node)
    shape = tuple(d if isinstance(d, int) else None for d in kind.local(mesh))
    if _is_cache(written_cache(node)):
        shape = (None, *shape)  # the second dimension of a cache is a page's rows
    return Operand(kind.dtype, shape, layouts.get(node, layout_of(node)))


def _is_cache(node: torch.fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["input"].kind == "cache"
