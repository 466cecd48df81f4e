"""Plans of the ops that go row by row: normalization, and rotary embedding."""

from __future__ import annotations

from math import prod
from typing import Final

from tskernels.gpu.launch import Argument, Constants, Launch, Operand, Out, Plan
from tskernels.gpu.sizes import cdiv
from tskernels.gpu.triton_entry import inner, number, padded, plan, rows, source, stride, triton_kernel
from tskernels.registry import Call
from tskernels.rope import radians
from tskernels.rope_kinds import magnitude_of, turned_width
from tskernels.target import Target

WIDEST: Final = 32768
_BLOCK: Final = 2048
"""Elements that a block takes, where a row has fewer."""


def _fits(call: Call) -> bool:
    """rows of at most 32,768 elements."""
    return (call.operands[0].shape[-1] or 0) <= WIDEST


def _by_rows(call: Call, target: Target, function: str, arguments: dict[str, Argument], constants: dict[str, int | float]) -> Plan:
    """A launch of blocks that have some rows of a token each; x is [T, ..., D]."""
    *before, width = inner(call)
    count, room = prod(before), padded(width)
    some = min(padded(count), max(1, _BLOCK // room))
    types = {name: _type(call, a) for name, a in arguments.items()} | {"out": call.operands[0].dtype}
    strides = {"x_token": stride(0, 0), "x_row": stride(0, -2 if before else 0)}
    sizes: dict[str, int | float] = {"COUNT": count, "WIDTH": width, "PADDED": room, "ROWS": some}
    grid = (rows(), cdiv(count, some), 1)
    warps = min(8, max(1, some * room // 512))
    given = {**arguments, "out": Out(), **strides}
    return plan(Launch(source("rows", function), grid, given, sizes | constants, types, warps, 1, dependent=True))


def _type(call: Call, argument: Argument) -> str:
    return call.operands[argument.index].dtype if isinstance(argument, Operand) else "f32"


@triton_kernel("ts::rms_norm", when=_fits)
def rms_norm(call: Call, target: Target) -> Plan:
    given = {"EPS": number(call, "eps"), "OFFSET": number(call, "offset")}
    return _by_rows(call, target, "rms_norm", {"x": Operand(0), "w": Operand(1)}, given)


@triton_kernel("ts::rms_scale", when=_fits)
def rms_scale(call: Call, target: Target) -> Plan:
    given = {"EPS": number(call, "eps"), "OFFSET": number(call, "offset"), "WHOLE": number(call, "count")}
    return _by_rows(call, target, "rms_scale", {"x": Operand(0), "squares": Operand(1), "w": Operand(2)}, given)


@triton_kernel("ts::row_squares", when=_fits)
def row_squares(call: Call, target: Target) -> Plan:
    *before, width = inner(call)
    count, room = prod(before), padded(width)
    some = min(padded(count), max(1, _BLOCK // room))
    arguments: dict[str, Argument] = {"x": Operand(0), "out": Out(), "x_token": stride(0, 0), "x_row": stride(0, -2 if before else 0)}
    constants = {"COUNT": count, "WIDTH": width, "PADDED": room, "ROWS": some}
    types, warps = {"x": call.operands[0].dtype, "out": "f32"}, min(8, max(1, some * room // 512))
    return plan(Launch(source("rows", "row_squares"), (rows(), 1, 1), arguments, constants, types, warps, 1, dependent=True))


@triton_kernel("ts::rope", constants=radians)
def rope(call: Call, target: Target) -> Plan:
    *before, width = inner(call)
    fraction = call.attributes.get("fraction", 1.0)
    assert isinstance(fraction, int | float)
    pairs = turned_width(width, fraction) // 2
    count, room = prod(before), padded(pairs, 2)
    some = min(padded(count), max(1, _BLOCK // 2 // room))
    kind, parameters = call.attributes["kind"], call.attributes["parameters"]
    assert isinstance(kind, str)
    assert isinstance(parameters, list | tuple)
    arguments: dict[str, Argument] = {
        "x": Operand(0),
        "positions": Operand(1),
        "radians": Constants(),
        "out": Out(),
        "x_token": stride(0, 0),
        "x_row": stride(0, -2 if before else 0),
    }
    constants = {
        "COUNT": count,
        "WIDTH": width,
        "PAIRS": pairs,
        "PADDED": room,
        "INTERLEAVED": bool(call.attributes["interleaved"]),
        "MAGNITUDE": magnitude_of(kind, parameters),
        "ROWS": some,
    }
    dtype = call.operands[0].dtype
    types = {"x": dtype, "positions": "i32", "radians": "f32", "out": dtype}
    grid, warps = (rows(), cdiv(count, some), 1), min(8, max(1, some * room // 256))
    return plan(Launch(source("rows", "rope"), grid, arguments, constants, types, warps, 1, dependent=True))
