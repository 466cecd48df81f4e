"""What the calls of kernels for GPUs launch, each plan and each function once.

Assumes: kernels are selected. Guarantees: the meta of each node that launches something says which plan, as `plan`; what a launch reads
before others have ended none of them writes.
Does not: compile anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.fx

from tsc.graph import Program, op_of, tensor_operands, written_cache
from tskernels.gpu.functions import Function
from tskernels.gpu.launch import Launch, Plan
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
                made = _in_order(plan(call, target), node)
                record |= plan_record(made, lambda function: functions.setdefault(function, len(functions)))
                key = json.dumps(record)
                plans.setdefault(key, record)
                node.meta["plan"] = numbers.setdefault(key, len(numbers))
    return LaunchTable(list(functions), list(plans.values()))


def _in_order(plan: Plan, node: torch.fx.Node) -> Plan:
    """Where a launch would read early what another may write, it begins when the one before has ended."""
    there = {i for i, operand in enumerate(tensor_operands(node)) if _is_there(operand)}

    def settled(launch: Launch) -> Launch:
        return launch if there.issuperset(launch.early) else replace(launch, dependent=False)

    return replace(plan, variants=tuple(replace(v, launches=tuple(map(settled, v.launches))) for v in plan.variants))


def _is_there(operand: torch.fx.Node) -> bool:
    """Whether it is before the first launch of a step: a weight, what the step is given, or a cache but for what the step appends."""
    source = written_cache(operand)
    return source.op == "placeholder" and source.meta["input"].kind in ("weight", "step", "cache")
