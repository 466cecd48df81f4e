"""Bind every op to a kernel of the registry.

Guarantees: each op node's meta holds `kernel`, its registry name. Views and in-place ops are bound like the others.
Raises KernelMissing, with every candidate and why it lost, when an op has none for the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.fx

from tsc.graph import CACHE_WRITES, Program, op_of, operands, type_of
from tsc.mesh import Mesh
from tskernels.registry import Call, Operand, select
from tskernels.target import Target


@dataclass(frozen=True, slots=True)
class SelectKernels:
    target: Target
    name: ClassVar[str] = "select-kernels"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            for node in graph.nodes:
                if node.op == "call_function":
                    node.meta["kernel"] = select(call_of(program.mesh, node), self.target).name
        return program


def call_of(mesh: Mesh, node: torch.fx.Node) -> Call:
    """What the registry is asked for a node: local operand shapes, dynamic extents as None."""
    tensors = [n for n in operands(node) if n.op != "placeholder" or n.meta["input"].kind != "coordinate"]
    return Call(f"ts::{op_of(node)}", tuple(_operand(mesh, n) for n in tensors), dict(node.kwargs))


def _operand(mesh: Mesh, node: torch.fx.Node) -> Operand:
    kind = type_of(node)
    shape = tuple(d if isinstance(d, int) else None for d in kind.local(mesh))
    return Operand(kind.dtype, (None, *shape) if _is_cache(node) else shape)  # the second dimension of a cache is a page's rows


def _is_cache(node: torch.fx.Node) -> bool:
    while node.op == "call_function" and op_of(node) in CACHE_WRITES:
        node = operands(node)[0]
    return node.op == "placeholder" and node.meta["input"].kind == "cache"
