"""Bind every op to a kernel of the registry.

Assumes: weights have their layouts.
Guarantees: each op node's meta holds `kernel`, its registry name. Views and in-place ops are bound like the others.
Raises KernelMissing, with every candidate and why it lost, when an op has none for the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tsc.graph import Program
from tskernels.registry import select
from tskernels.target import Target
from tspasses.kernel_calls import call_of


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
