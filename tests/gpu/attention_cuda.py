"""Attention of many rows in CUDA C++ in the emulator: the launch that its plan has, and how wrong what it writes is."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tests.gpu.kernels_of_test import Array, difference, from_bf16, normal, to_bf16

from tskernels import emulator
from tskernels.emulator import Report, Uninitialized
from tskernels.gpu.attention_cuda import MOST_ROWS, attention_sm90
from tskernels.gpu.launch import Launch, Operand, Out, Plan, PreparedInput, Scalar, ScratchSpace, StepShape, TensorMap
from tskernels.gpu.sizes import Expression, of_operands, value
from tskernels.gpu.splits import RECORD, work
from tskernels.registry import Call
from tskernels.registry import Operand as OperandType
from tskernels.target import gpu

FOLDER = Path(__file__).parents[2] / "kernels/tskernels/gpu/cuda"
NAN = 0x7FC0


@cache
def ptx_of(heads: int, group: int, width: int) -> str:
    return compile_to_ptx((FOLDER / "attention_sm90.cu").read_text(), heads, group, width)


def compile_to_ptx(source: str, heads: int, group: int, width: int) -> str:
    """What nvcc makes of a source, which includes those of the folder."""
    with TemporaryDirectory() as folder:
        written, path = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
        written.write_text(source)
        constants = (f"-DHEADS={heads}", f"-DGROUP={group}", f"-DWIDTH={width}")
        command = ["nvcc", "-std=c++20", "-O3", "-ptx", "-I", str(FOLDER), "-gencode", "arch=compute_90a,code=compute_90a"]
        subprocess.run([*command, *constants, str(written), "-o", str(path)], check=True)
        return path.read_text()


def call_of(heads: int, group: int, width: int) -> Call:
    floats = OperandType("bf16", (None, heads, group, width)), OperandType("bf16", (None, None, 2, heads, width))
    step = OperandType("i32", (None, 2)), OperandType("i32", (None,)), OperandType("i32", (None, None))
    return Call("ts::attention", (*floats, *step), {"scale": width**-0.5, "window": 0, "softcap": 0.0})


def wide_launch(plan: Plan) -> Launch:
    [found] = [launch for launch in plan.variants[-1].launches if launch.source.function == "attend" and launch.shared]
    return found


def run(
    ptx: str,
    shape: tuple[int, int, int],
    sequences: Sequence[tuple[int, int]],
    page: int,
    blocks: int = 2,
    gap: int = 0,
    loud: float = 1,
    max_instructions: int = 1 << 32,
) -> tuple[float, Report]:
    """The error, relative, of the largest part. shape: heads, group and width; sequences: tokens before, and new ones; gap: rows of no
    sequence before each; loud: what queries are multiplied by, so that maxima grow. What lies in the cache past the end of a sequence is
    no number; queries lie in wider rows."""
    heads, group, width = shape
    plan = attention_sm90(call_of(*shape), gpu("sm_90a"))
    spans, past = [], 0
    for _, new in sequences:
        spans.append((past + gap, past + gap + new))
        past += gap + new
    lengths = [before + new for before, new in sequences]
    counts = [-(-length // page) for length in lengths]
    order, tables = np.random.default_rng(0).permutation(sum(counts)), np.full((len(counts), max(counts) + 1), 1 << 28, np.int32)
    stored, first = to_bf16(normal(sum(counts), page, 2, heads, width, seed=1)), 0
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        tables[i, :count], first = order[first : first + count], first + count
        stored[tables[i, count - 1], length - (count - 1) * page :] = NAN
    whole = to_bf16(loud * normal(past, heads * group + 2, width, seed=2))
    q = whole[:, : heads * group].reshape(past, heads, group, width)
    operands = [q, stored, np.array(spans, np.int32), np.array(lengths, np.int32), tables]
    sizes = {"T": past, "S": len(spans), "P": tables.shape[1], "SMS": blocks}
    shapes, strides = [list(o.shape) for o in operands], [[s // o.itemsize for s in o.strides] for o in operands]

    def number(given: int | Expression) -> int:
        return value(of_operands(given, shapes, strides), sizes)

    [listed] = plan.prepared
    records = work(StepShape(spans, lengths, sizes), **listed.keywords)  # type: ignore[arg-type]
    assert len(records) <= number(listed.capacity)
    scratch = {space.name: np.zeros(number(space.bytes), np.uint8) for space in plan.scratch}
    out = np.zeros((past, heads, group, width), np.uint16)
    for array in (whole, *operands[1:], records):
        array.flags.writeable = False
    launch = wide_launch(plan)

    def argument(given: object) -> emulator.Argument:
        match given:
            case Operand(index):
                return operands[index]
            case Out():
                return Uninitialized(out)
            case PreparedInput():
                return records
            case ScratchSpace(name):
                return scratch[name] if name == "taken" else Uninitialized(scratch[name])
            case Scalar(n, dtype):
                return float(n) if dtype == "f32" and isinstance(n, float) else number(n)  # type: ignore[arg-type]
            case TensorMap(Operand(index), _, extents, steps, box, swizzle):
                lies, under = (2, *map(number, steps)), whole if index == 0 else operands[index]
                view = np.ndarray([number(n) for n in extents][::-1], np.uint16, buffer=under, strides=lies[::-1])
                return emulator.TensorMap(view, tuple(number(n) for n in box)[::-1], swizzle)  # type: ignore[arg-type]
        raise AssertionError(given)

    arguments = [argument(given) for given in launch.arguments.values()]
    shape_of_launch = "attend", blocks, 32 * launch.warps, arguments
    unfinished = [whole, stored, out, *scratch.values()] if launch.dependent else None
    report = emulator.launch(ptx, *shape_of_launch, shared_bytes=launch.shared, max_instructions=max_instructions, unfinished=unfinished)
    assert not scratch["taken"].any()
    tiles = records.reshape(-1, RECORD)
    found, is_wide = _joined(tiles, from_bf16(out), *(scratch[name].view(np.float32) for name in ("partials", "logs")))
    expected = _expected(from_bf16(q), from_bf16(stored), tables, spans, lengths)
    assert is_wide.any()
    return difference(found[is_wide], expected[is_wide]), report


def _joined(tiles: Array, out: Array, partials: Array, logs: Array) -> tuple[Array, Array]:
    """The result with what splits make together, and which rows of tokens and members of a group are of wide tiles."""
    tokens, heads, group, width = out.shape
    room = MOST_ROWS // group * group
    partials, logs = partials.reshape(-1, heads, room, width), logs.reshape(-1, heads, room)
    narrow, wide, combined = tiles[0, :3]
    rows_of, is_wide = out.transpose(0, 2, 1, 3).reshape(tokens * group, heads, width).copy(), np.zeros(tokens * group, bool)
    for _, token, row, rows, *_ in tiles[1 + narrow : 1 + narrow + wide]:
        is_wide[token * group + row : token * group + row + rows] = True
    for token, row, rows, first, count, *_ in tiles[1 + narrow + wide :][:combined]:
        at = slice(token * group + row, token * group + row + rows)
        if is_wide[at].all():
            parts, weights = partials[first : first + count, :, :rows], np.exp2(logs[first : first + count, :, :rows].astype(np.float64))
            rows_of[at] = (np.einsum("phrw,phr->hrw", parts, weights) / weights.sum(0)[..., None]).transpose(1, 0, 2)
    return rows_of.reshape(tokens, group, heads, width).transpose(0, 2, 1, 3), is_wide.reshape(tokens, group)[:, 0]


def _expected(q: Array, stored: Array, tables: Array, spans: Sequence[tuple[int, int]], lengths: Sequence[int]) -> Array:
    found = np.zeros(q.shape)
    for i, ((first, last), length) in enumerate(zip(spans, lengths, strict=True)):
        kept = stored[tables[i, : -(-length // stored.shape[1])]].reshape(-1, *stored.shape[2:])[:length]
        scores = np.einsum("tkge,jke->tkgj", q[first:last], kept[:, 0]) * q.shape[-1] ** -0.5
        seen = np.arange(length) <= np.arange(length - (last - first), length)[:, None]
        weights = np.exp(np.where(seen[:, None, None], scores, -np.inf))
        found[first:last] = np.einsum("tkgj,jke->tkge", weights, kept[:, 1]) / weights.sum(-1, keepdims=True)
    return found
