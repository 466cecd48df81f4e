"""Say how each call of a kernel for GPUs is launched.

Assumes: kernels are selected.
Guarantees: the meta of each node whose kernel has a plan holds it, as `launches`.
Does not: compile anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tsc.graph import Program, op_of
from tskernels.gpu.functions import Function
from tskernels.gpu.plan_json import plan_record
from tskernels.registry import lookup
from tskernels.target import Target
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class PlanLaunches:
    target: Target
    name: ClassVar[str] = "plan-launches"

    def run(self, program: Program) -> Program:
        for graph in program.graphs.values():
            for node in graph.nodes:
                if node.op == "call_function" and (plan := lookup(f"ts::{op_of(node)}", node.meta["kernel"]).plan) is not None:
                    node.meta["launches"] = plan(call_of(program.mesh, node), self.target)
        return program


@dataclass(slots=True)
class LaunchTable:
    """What the programs of an artifact launch: each function and each plan once, by number. plans: as kernels.json has them."""

    functions: list[Function] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)


def numbered(programs: Sequence[Program]) -> LaunchTable:
    """The table of programs; each node that has launches gets the number of its plan, as `plan`."""
    functions: dict[Function, int] = {}
    plans: dict[str, int] = {}
    records = []
    for program in programs:
        for graph in program.graphs.values():
            for node in graph.nodes:
                if "launches" not in node.meta:
                    continue
                record = {"op": f"ts::{op_of(node)}", "kernel": node.meta["kernel"], "call": str(call_of(program.mesh, node))}
                record |= plan_record(node.meta["launches"], lambda function: functions.setdefault(function, len(functions)))
                key = json.dumps(record)
                if key not in plans:
                    plans[key] = len(plans)
                    records.append(record)
                node.meta["plan"] = plans[key]
    return LaunchTable(list(functions), records)
