"""What the calls of kernels for GPUs launch, each plan and each function once.

Assumes: kernels are selected. Guarantees: the meta of each node that launches something says which plan, as `plan`.
Does not: compile anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsc.graph import Program, op_of
from tskernels.gpu.functions import Function
from tskernels.gpu.plan_json import plan_record
from tskernels.registry import lookup
from tskernels.target import Target
from tspasses.kernel_calls import call_of


@dataclass(frozen=True, slots=True)
class LaunchTable:
    """By number. plans: as kernels.json has them."""

    functions: Sequence[Function]
    plans: Sequence[dict[str, Any]]


def launch_table(programs: Sequence[Program], target: Target) -> LaunchTable:
    """Of all programs of an artifact."""
    functions: dict[Function, int] = {}
    plans: dict[str, dict[str, Any]] = {}
    numbers: dict[str, int] = {}
    for program in programs:
        for graph in program.graphs.values():
            for node in graph.nodes:
                plan = lookup(f"ts::{op_of(node)}", node.meta["kernel"]).plan if node.op == "call_function" else None
                if plan is None:
                    continue
                call = call_of(program.mesh, node)
                record = {"op": call.op, "kernel": node.meta["kernel"], "call": str(call)}
                record |= plan_record(plan(call, target), lambda function: functions.setdefault(function, len(functions)))
                key = json.dumps(record)
                plans.setdefault(key, record)
                node.meta["plan"] = numbers.setdefault(key, len(numbers))
    return LaunchTable(list(functions), list(plans.values()))
