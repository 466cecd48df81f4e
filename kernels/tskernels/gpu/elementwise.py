"""Plans of the ops on single elements, and of moves of rows: look-ups, and what is written to caches."""

from __future__ import annotations

from typing import Final

from tskernels.cost import Cost, append_bound, bandwidth_bound, gather_bound, overlapped
from tskernels.gpu.launch import Argument, Coordinate, Launch, Number, Operand, Out, Plan
from tskernels.gpu.sizes import cdiv
from tskernels.gpu.triton_entry import (
    cache_kernel,
    inner,
    number,
    padded,
    plan,
    rows,
    size,
    source,
    stored_type,
    stride,
    triton_kernel,
    width,
)
from tskernels.registry import Call, When, one_float_type
from tskernels.target import Target

_BLOCK: Final = 1024
_UNARY: Final = {"silu": "", "sigmoid": "", "gelu": "", "gelu_tanh": "", "scale": "factor", "softcap": "cap"}
"""With the attribute that each has."""
_BINARY: Final = ("add", "mul")
_OF_ROWS: Final = ("scale_rows", "exp_minus", "divide_rows")


def _row(call: Call, operand: int = 0) -> int:
    """Elements that lie side by side for sure."""
    return (1, *inner(call, operand))[-1]


def strides(call: Call, operand: int, name: str) -> dict[str, Argument]:
    """From a token to the next, and from a token's row to the next."""
    rank = len(call.operands[operand].shape)
    return {f"{name}_token": stride(operand, 0), f"{name}_row": stride(operand, -2 if rank > 2 else 0)}


def _launch(call: Call, function: str, arguments: dict[str, Argument], constants: dict[str, Number | str], wide: int, out: str) -> Plan:
    """A block for some elements of each row of the result, `wide` in all."""
    block = min(_BLOCK, padded(wide))
    types = {name: call.operands[a.index].dtype for name, a in arguments.items() if isinstance(a, Operand)} | {"out": out}
    grid = (rows(1 if function == "take_rows" else 0), cdiv(wide, block), 1)
    warps = max(1, block // 256)
    return plan(Launch(source("elementwise", function), grid, arguments, constants | {"BLOCK": block}, types, warps, 1, dependent=True))


def _unary(name: str) -> None:
    @triton_kernel(f"ts::{name}", cost=overlapped())
    def planner(call: Call, target: Target) -> Plan:
        factor = number(call, _UNARY[name]) if _UNARY[name] else 0
        constants = {"FUNCTION": name, "FACTOR": factor, "WIDTH": width(call), "ROW": _row(call)}
        arguments: dict[str, Argument] = {"x": Operand(0), "out": Out(), **strides(call, 0, "x")}
        return _launch(call, "unary", arguments, constants, width(call), call.operands[0].dtype)


def _binary(name: str, when: When | None) -> None:
    @triton_kernel(f"ts::{name}", when=when, cost=overlapped())
    def planner(call: Call, target: Target) -> Plan:
        constants: dict[str, Number | str] = {"FUNCTION": name, "WIDTH": width(call), "ROW": _row(call)}
        y = strides(call, 1, "y")
        if name == "scale_rows":  # [..., 1]: rows are where the last dimension but one says
            y = {"y_token": stride(1, 0), "y_row": stride(1, -2)}
        elif name in _OF_ROWS:  # [...]
            y = {"y_token": stride(1, 0), "y_row": stride(1, -1)}
        arguments: dict[str, Argument] = {"x": Operand(0), "y": Operand(1), "out": Out(), **strides(call, 0, "x"), **y}
        return _launch(call, "binary", arguments, constants, width(call), "f32" if name in _OF_ROWS[1:] else call.operands[0].dtype)


for _name in _UNARY:
    _unary(_name)
for _name in _BINARY:
    _binary(_name, one_float_type)
for _name in _OF_ROWS:
    _binary(_name, None)


@triton_kernel("ts::decay")
def decay(call: Call, target: Target) -> Plan:
    arguments: dict[str, Argument] = {"x": Operand(0), "rate": Operand(1), "bias": Operand(2), "out": Out(), **strides(call, 0, "x")}
    return _launch(call, "decay", arguments, {"WIDTH": width(call), "ROW": _row(call)}, width(call), "f32")


def _is_table(call: Call) -> bool:
    """a table whose rows are known when a program is compiled."""
    return call.operands[1].shape[0] is not None


@triton_kernel("ts::embedding", when=_is_table, cost=gather_bound(source=1, indices=0))
def embedding(call: Call, target: Target) -> Plan:
    arguments: dict[str, Argument] = {"ids": Operand(0), "table": Operand(1), "out": Out(), "shard": Coordinate("shard")}
    constants: dict[str, Number | str] = {"COUNT": size(call, 1, 0), "WIDTH": width(call, 1)}
    return _launch(call, "embedding", arguments, constants, width(call, 1), call.operands[1].dtype)


@triton_kernel("ts::take_rows", cost=overlapped(gather_bound(source=0, indices=1)))
def take_rows(call: Call, target: Target) -> Plan:
    arguments: dict[str, Argument] = {"x": Operand(0), "index": Operand(1), "out": Out(), **strides(call, 0, "x")}
    return _launch(call, "take_rows", arguments, {"WIDTH": width(call), "ROW": _row(call)}, width(call), call.operands[0].dtype)


def _append(op: str, cost: Cost = bandwidth_bound) -> None:
    @cache_kernel(op, 0, cost=cost)
    def planner(call: Call, target: Target) -> Plan:
        x, y = width(call, 1), width(call, 2)
        block = min(_BLOCK, padded(max(x, y)))
        arguments: dict[str, Argument] = {
            "cache": Operand(0),
            "x": Operand(1),
            "y": Operand(2),
            "slots": Operand(3),
            **strides(call, 1, "x"),
            **strides(call, 2, "y"),
        }
        constants = {"X_WIDTH": x, "X_ROW": _row(call, 1), "Y_WIDTH": y, "Y_ROW": _row(call, 2), "BLOCK": block}
        dtype = call.operands[0].dtype
        types = {"cache": stored_type(call, 0), "x": dtype, "y": dtype, "slots": "i32"}
        grid = (rows(3), cdiv(max(x, y), block), 1)
        warps = max(1, block // 256)
        return plan(Launch(source("elementwise", "append"), grid, arguments, constants, types, warps, 1, dependent=True))


_append("ts::cache_append", append_bound)
_append("ts::latent_append", append_bound)
