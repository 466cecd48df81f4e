"""Plans of choosing and normalizing within rows. The largest few of a row are torch's to find."""

from __future__ import annotations

from math import prod
from typing import Final

from tskernels.gpu.launch import Argument, Coordinate, Launch, Operand, Out, Plan, Scalar, Scratch, ScratchSpace, Variant
from tskernels.gpu.sizes import Stride, cdiv
from tskernels.gpu.triton_entry import COMPILED, inner, padded, plan, rows, size, source, stride, triton_kernel, width
from tskernels.registry import Call
from tskernels.target import Target

_BLOCK: Final = 2048


def _is_matrix(call: Call) -> bool:
    """`x` of two dimensions."""
    return len(call.operands[0].shape) == 2


@triton_kernel("ts::max_key", when=_is_matrix)
def max_key(call: Call, target: Target) -> Plan:
    wide = size(call, 0, 1)
    block = min(_BLOCK, padded(wide))
    blocks = -(-wide // block)
    arguments: dict[str, Argument] = {"x": Operand(0), "keys": ScratchSpace("keys"), "shard": Coordinate("shard"), "x_row": stride(0, 0)}
    types = {"x": call.operands[0].dtype, "keys": "i64"}
    first = Launch(
        source("sampling", "block_keys"), (rows(), blocks, 1), arguments, {"WIDTH": wide, "BLOCK": block}, types, max(1, block // 256), 1
    )
    constants = {"BLOCKS": blocks, "PADDED": padded(blocks)}
    second = Launch(
        source("sampling", "largest_key"),
        (rows(), 1, 1),
        {"keys": ScratchSpace("keys"), "out": Out()},
        constants,
        {"keys": "i64", "out": "i64"},
        1,
        1,
    )
    return Plan((Variant((first, second)),), (Scratch("keys", rows() * (blocks * 8)),))


def _of_keys(name: str, dtype: str) -> None:
    @triton_kernel(f"ts::{name}", verified=COMPILED)
    def planner(call: Call, target: Target) -> Plan:
        wide = width(call)
        arguments: dict[str, Argument] = {"keys": Operand(0), "out": Out(), "rows": Scalar(rows()), "keys_row": Scalar(Stride(0, 0))}
        constants = {"NUMBERS": dtype == "f32", "WIDTH": wide, "BLOCK": 256}
        types = {"keys": "i64", "out": dtype}
        return plan(Launch(source("sampling", "of_keys"), (cdiv(rows() * wide, 256), 1, 1), arguments, constants, types, 1, 1))


def _of_rows(name: str) -> None:
    @triton_kernel(f"ts::{name}")
    def planner(call: Call, target: Target) -> Plan:
        *before, wide = inner(call)
        count = prod(before)
        block = min(_BLOCK, padded(wide))
        arguments: dict[str, Argument] = {"x": Operand(0), "out": Out(), "x_token": stride(0, 0), "x_row": stride(0, -2 if before else 0)}
        constants = {"COUNT": count, "WIDTH": wide, "SUM": name == "row_sum", "BLOCK": block}
        types = {"x": call.operands[0].dtype, "out": "f32"}
        return plan(Launch(source("sampling", "of_rows"), (rows(), count, 1), arguments, constants, types, max(1, block // 256), 1))


_of_keys("key_index", "i32")
_of_keys("key_value", "f32")
_of_rows("row_max")
_of_rows("row_sum")
