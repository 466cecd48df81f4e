"""Plans of the ops with a state for each sequence."""

from __future__ import annotations

from typing import Final

from tskernels.cost import recurrence_bound
from tskernels.gpu.launch import Argument, Coordinate, Launch, Operand, Out, Plan, Scalar
from tskernels.gpu.sizes import Stride, cdiv
from tskernels.gpu.triton_entry import inner, number, only, padded, plan, rows, size, source, stride, triton_kernel, width
from tskernels.registry import Call
from tskernels.target import Target

_BLOCK: Final = 1024


def _cleared(dtype: str, count: int) -> Launch:
    block = min(_BLOCK, padded(count))
    constants = {"COUNT": count, "BLOCK": block}
    return Launch(source("recurrent", "clear"), (rows(), cdiv(count, block), 1), {"out": Out()}, constants, {"out": dtype}, 4, 1)


@triton_kernel("ts::short_conv", cost=recurrence_bound(state=2))
def short_conv(call: Call, target: Target) -> Plan:
    channels, taps = width(call), size(call, 1, -1)
    row, dtype = (1, *inner(call))[-1], call.operands[0].dtype
    arguments: dict[str, Argument] = {
        "x": Operand(0),
        "w": Operand(1),
        "state": Operand(2),
        "spans": Operand(3),
        "states": Operand(4),
        "out": Out(),
        "shard": Coordinate("shard"),
        "tokens": Scalar(rows()),
        "x_token": stride(0, 0),
        "x_row": stride(0, -2 if len(call.operands[0].shape) > 2 else 0),
    }
    block = min(128, padded(channels))
    constants = {"CHANNELS": channels, "ROW": row, "TAPS": taps, "BLOCK": block, "ROWS": 16}
    types = {"x": dtype, "w": call.operands[1].dtype, "state": call.operands[2].dtype, "spans": "i32", "states": "i32", "out": dtype}
    grid = (rows(3), cdiv(channels, block), 1)
    return plan(_cleared(dtype, channels), Launch(source("recurrent", "short_conv"), grid, arguments, constants, types, 4, 1))


@triton_kernel("ts::gated_delta", cost=recurrence_bound(state=5))
def gated_delta(call: Call, target: Target) -> Plan:
    heads, key = size(call, 0, 1), size(call, 0, 2)
    group, value = size(call, 2, 2), size(call, 2, 3)
    dtype = call.operands[2].dtype
    names = ("q", "k", "v", "decay", "beta", "state", "spans", "states")
    arguments: dict[str, Argument] = {name: Operand(i) for i, name in enumerate(names)}
    arguments |= {"out": Out(), "shard": Coordinate("shard"), "tokens": Scalar(rows())}
    arguments |= {"q_token": stride(0, 0), "q_head": stride(0, 1), "k_token": stride(1, 0), "k_head": stride(1, 1)}
    arguments |= {"v_token": stride(2, 0), "v_head": stride(2, 1), "v_member": stride(2, 2)}
    arguments |= {name: Scalar(Stride(4, i)) for i, name in enumerate(("b_token", "b_head", "b_member"))}
    block = min(32, padded(value))
    constants = {
        "HEADS": heads,
        "GROUP": group,
        "KEY": key,
        "KEY_PADDED": padded(key),
        "VALUE": value,
        "SCALE": number(call, "scale"),
        "EPS": number(call, "eps"),
        "BLOCK": block,
    }
    types = only({name: call.operands[i].dtype for i, name in enumerate(names)} | {"out": dtype}, arguments)
    grid = (rows(6), heads * group, cdiv(value, block))
    launch = Launch(source("recurrent", "gated_delta"), grid, arguments, constants, types, 4, 2)
    return plan(_cleared(dtype, heads * group * value), launch)
