"""Plans of sums over ranks that kernels make themselves, through memory that the ranks write to (`peers.py`)."""

from __future__ import annotations

from tskernels.cost import one_shot_bound
from tskernels.dtypes import size_bytes
from tskernels.gpu.entry import gpu_kernel
from tskernels.gpu.launch import Argument, Launch, Operand, Out, Peers, Plan, Scalar, Variant, Verification
from tskernels.gpu.peers import BLOCKS, CAPACITY, PATIENCE
from tskernels.gpu.rows import WIDEST
from tskernels.gpu.triton_entry import FLOATS, number, padded, rows, source, stride, width
from tskernels.registry import Call
from tskernels.target import CUDA, Target

_VERIFIED = Verification("run", "2 x NVIDIA H200", "2026-11-27")
_ALIGNMENT = 16
"""Bytes that a thread reads and writes at once."""


def _is_a_sum_of_rows(call: Call) -> bool:
    """a sum of rows of one dimension, of at most 32,768 elements, and of a multiple of 16 bytes."""
    x = call.operands[0]
    if len(x.shape) != 2 or call.attributes.get("reduction", "sum") != "sum" or len({o.dtype for o in call.operands}) > 1:
        return False
    return (x.shape[1] or 0) <= WIDEST and (x.shape[1] or 0) * size_bytes(x.dtype) % _ALIGNMENT == 0


@gpu_kernel("ts::all_reduce", name="triton", target=CUDA, dtypes=FLOATS, when=_is_a_sum_of_rows, cost=one_shot_bound, verified=_VERIFIED)
def all_reduce(call: Call, target: Target) -> Plan:
    return _plan(call, {})


@gpu_kernel(
    "ts::all_reduce_add", name="triton", target=CUDA, dtypes=FLOATS, when=_is_a_sum_of_rows, cost=one_shot_bound, verified=_VERIFIED
)
def all_reduce_add(call: Call, target: Target) -> Plan:
    return _plan(call, {"residual": Operand(1)})


@gpu_kernel(
    "ts::all_reduce_add_norm", name="triton", target=CUDA, dtypes=FLOATS, when=_is_a_sum_of_rows, cost=one_shot_bound, verified=_VERIFIED
)
def all_reduce_add_norm(call: Call, target: Target) -> Plan:
    return _plan(call, {"residual": Operand(1), "w": Operand(2)})


def _plan(call: Call, given: dict[str, Argument]) -> Plan:
    """given: the operands beside the first; in the place of the others the function takes any address."""
    dtype, columns = call.operands[0].dtype, width(call)
    adds, normalizes = "residual" in given, "w" in given
    arguments: dict[str, Argument] = {
        "x": Operand(0),
        "residual": given.get("residual", Operand(0)),
        "w": given.get("w", Operand(0)),
        "out": Out(),
        "memories": Peers("memories"),
        "x_token": stride(0, 0),
        "residual_token": stride(1 if adds else 0, 0),
        "rows": Scalar(rows()),
        "rank": Peers("rank"),
        "ranks": Peers("ranks"),
    }
    types = dict.fromkeys(("x", "residual", "w", "out"), dtype) | {"memories": "i64"}
    room = padded(columns)
    sizes = {"WIDTH": columns, "PADDED": room, "BLOCKS": BLOCKS, "CAPACITY": CAPACITY, "PATIENCE": PATIENCE}
    constants = (
        sizes
        | {"ADDS": adds, "NORMALIZES": normalizes}
        | {"EPS": number(call, "eps") if normalizes else 0.0, "OFFSET": number(call, "offset") if normalizes else 0.0}
    )
    warps = min(16, max(1, room // 512))
    launch = Launch(source("all_reduce", "all_reduce"), (BLOCKS, 1, 1), arguments, constants, types, warps, 1)
    return Plan((Variant((launch,)),), exchanged=rows() * (columns * size_bytes(dtype)))
