"""Plans of the ops that go row by row: normalization, and rotary embedding; and of those that passes join."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Final

from tskernels.cost import add_norm_bound, qk_rope_bound
from tskernels.gpu.launch import Argument, Constants, Launch, Number, Operand, Out, Plan, Scalar, Verification
from tskernels.gpu.sizes import cdiv
from tskernels.gpu.triton_entry import MULTIPLE, inner, number, padded, plan, rows, source, stride, triton_kernel
from tskernels.registry import Call, one_float_type
from tskernels.rope import radians
from tskernels.rope_kinds import magnitude_of, turned_width
from tskernels.target import Target

WIDEST: Final = 32768
_BLOCK: Final = 2048
"""Elements that a block takes, where a row has fewer."""
_PAIRS: Final = 512
"""That a block turns, where a row has fewer."""

_RUN: Final = Verification("run", "NVIDIA H100", "2026-11-27")
"""By benchmarks/triton_kernels.py, those that are joined."""
_NO_NORM: Final[Mapping[str, Number]] = MappingProxyType({"NORMALIZES": False, "QUERIES": 0, "EPS": 0.0, "OFFSET": 0.0})


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


@triton_kernel("ts::add_norm", when=_fits, cost=add_norm_bound, verified=_RUN)
def add_norm(call: Call, target: Target) -> Plan:
    [columns] = inner(call)
    room = padded(columns)
    arguments: dict[str, Argument] = {
        "x": Operand(0),
        "residual": Operand(1),
        "w": Operand(2),
        "out": Out(),
        "x_token": stride(0, 0),
        "residual_token": stride(1, 0),
    }
    constants = {"WIDTH": columns, "PADDED": room, "EPS": number(call, "eps"), "OFFSET": number(call, "offset")}
    types = {**dict.fromkeys(("x", "residual", "out"), call.operands[0].dtype), "w": call.operands[2].dtype}
    warps = min(8, max(1, room // 512))
    return plan(Launch(source("rows", "add_norm"), (rows(), 1, 1), arguments, constants, types, warps, 1, dependent=True))


@triton_kernel("ts::rope", constants=radians)
def rope(call: Call, target: Target) -> Plan:
    *before, width = inner(call)
    return _turned(call, prod(before), width, stride(0, -2 if before else 0))


@triton_kernel("ts::qk_rope", cost=qk_rope_bound, constants=radians, verified=_RUN)
def qk_rope(call: Call, target: Target) -> Plan:
    queries, keys, width = (int(number(call, name)) for name in ("q_heads", "k_heads", "width"))
    return _turned(call, queries + keys, width, Scalar(width, "i32", MULTIPLE))


@triton_kernel("ts::qk_norm_rope", when=one_float_type, cost=qk_rope_bound, constants=radians, verified=_RUN)
def qk_norm_rope(call: Call, target: Target) -> Plan:
    queries, keys, width = (int(number(call, name)) for name in ("q_heads", "k_heads", "width"))
    norm = {"NORMALIZES": True, "QUERIES": queries, "EPS": number(call, "eps"), "OFFSET": number(call, "offset")}
    return _turned(call, queries + keys, width, Scalar(width, "i32", MULTIPLE), {"q_norm": Operand(2), "k_norm": Operand(3)}, norm)


def _turned(
    call: Call,
    count: int,
    width: int,
    row: Argument,
    norms: Mapping[str, Argument] = MappingProxyType({}),
    norm: Mapping[str, Number] = _NO_NORM,
) -> Plan:
    """A token's rows are so many, and `row` elements apart. norms: the weights of the norm before, without one any address; norm: what
    more there is to say of it."""
    fraction, kind, parameters = call.attributes.get("fraction", 1.0), call.attributes["kind"], call.attributes["parameters"]
    assert isinstance(fraction, int | float)
    assert isinstance(kind, str)
    assert isinstance(parameters, list | tuple)
    pairs = turned_width(width, fraction) // 2
    room = padded(pairs, 2)
    some = min(padded(count), max(1, _PAIRS // room))
    arguments: dict[str, Argument] = {
        "x": Operand(0),
        "positions": Operand(1),
        "radians": Constants(),
        "q_norm": norms.get("q_norm", Operand(0)),
        "k_norm": norms.get("k_norm", Operand(0)),
        "out": Out(),
        "x_token": stride(0, 0),
        "x_row": row,
    }
    constants: dict[str, Number] = {
        "COUNT": count,
        "WIDTH": width,
        "ROOM": padded(width),
        "PAIRS": pairs,
        "PADDED": room,
        "INTERLEAVED": bool(call.attributes["interleaved"]),
        "MAGNITUDE": magnitude_of(kind, parameters),
        "ROWS": some,
        **norm,
    }
    types = dict.fromkeys(("x", "q_norm", "k_norm", "out"), call.operands[0].dtype) | {"positions": "i32", "radians": "f32"}
    grid, warps = (rows(), cdiv(count, some), 1), min(8, max(1, some * room // 128))
    return plan(Launch(source("rows", "rope"), grid, arguments, constants, types, warps, 1, dependent=True))
