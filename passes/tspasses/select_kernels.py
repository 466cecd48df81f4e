"""Bind every op to a kernel of the registry.

Assumes: weights have their layouts.
Guarantees: each op node's meta holds `kernel`, its registry name. Views and in-place ops are bound like the others. Where measurements
of a call's kernels are given, they decide, and the cost model elsewhere.
Raises KernelMissing, with every candidate and why it lost, when an op has none for the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tsc.graph import Program
from tskernels.registry import Call, Measurements, explain, select
from tskernels.target import Target
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class SelectKernels:
    target: Target
    measured: Measurements | None = None
    name: ClassVar[str] = "select-kernels"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            for node in graph.nodes:
                if node.op == "call_function":
                    node.meta["kernel"] = select(call_of(program.mesh, node), self.target, self.measured).name
        return program


def chosen_by_measurement(programs: Sequence[Program], target: Target, measured: Measurements) -> tuple[int, int]:
    """How many of the distinct calls have a kernel because of what it took, and how many distinct calls of kernels there are."""
    nodes = [(p.mesh, node) for p in programs for graph in p.graphs.values() for node in graph.nodes if node.op == "call_function"]
    calls: dict[str, Call] = {str(call): call for call in (call_of(mesh, node) for mesh, node in nodes)}
    best = [explain(call, target, measured)[0] for call in calls.values()]
    return sum(c.is_measured for c in best), sum(c.kernel.kind != "view" for c in best)
