"""Plans as an artifact keeps them: kernels.json of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tskernels.gpu.functions import Function, function_of
from tskernels.gpu.launch import (
    Argument,
    Constants,
    Coordinate,
    Launch,
    Number,
    Operand,
    Out,
    Peers,
    Plan,
    PreparedInput,
    Scalar,
    ScratchSpace,
    TensorMap,
    Variant,
)
from tskernels.gpu.sizes import Expression, to_json

Record = dict[str, Any]


def plan_record(plan: Plan, number: Callable[[Function], int]) -> Record:
    """A JSON object; number: of a function in the list of all."""
    found: Record = {"variants": [_variant(variant, number) for variant in plan.variants]}
    if plan.scratch:
        found["scratch"] = [{"name": s.name, "bytes": to_json(s.bytes), "zeroed": s.zeroed} for s in plan.scratch]
    if plan.prepared:
        found["prepared"] = [
            {"name": p.name, "function": p.function, "keywords": dict(p.keywords), "capacity": to_json(p.capacity)} for p in plan.prepared
        ]
    if plan.exchanged is not None:
        found["exchanged"] = to_json(plan.exchanged)
    return found


def _variant(variant: Variant, number: Callable[[Function], int]) -> Record:
    newest = {"newest": variant.newest} if variant.newest > 1 else {}
    kernel = {"kernel": variant.kernel} if variant.kernel else {}
    return {"tokens": variant.tokens, **newest, **kernel, "launches": [_launch(launch, number) for launch in variant.launches]}


def _launch(launch: Launch, number: Callable[[Function], int]) -> Record:
    arguments = [_argument(a) for a in launch.arguments.values()]
    return {"function": number(function_of(launch)), "grid": [to_json(n) for n in launch.grid], "arguments": arguments}


def _argument(argument: Argument) -> Record:
    match argument:
        case Operand(index):
            return {"kind": "operand", "index": index}
        case Out():
            return {"kind": "out"}
        case Constants():
            return {"kind": "constants"}
        case ScratchSpace(name):
            return {"kind": "scratch", "name": name}
        case PreparedInput(name):
            return {"kind": "prepared", "name": name}
        case Coordinate(name):
            return {"kind": "coordinate", "name": name}
        case Peers(fact):
            return {"kind": "peers", "fact": fact}
        case Scalar(value, dtype):
            return {"kind": "scalar", "value": _number(value), "dtype": dtype}
        case TensorMap(of, dtype, sizes, strides, box, swizzle):
            lists = {key: [to_json(n) for n in numbers] for key, numbers in (("sizes", sizes), ("strides", strides), ("box", box))}
            return {"kind": "map", "of": _argument(of), "dtype": dtype, **lists, "swizzle": swizzle}


def _number(value: Number | Expression) -> Any:
    return to_json(value) if isinstance(value, int | Expression) else value
