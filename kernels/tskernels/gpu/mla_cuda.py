"""Plans of latent attention in CUDA C++ (cuda/mla_decode_*.cu): persistent thread blocks over a list of work that the host makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tskernels.cache_layouts import FP8_CACHE
from tskernels.cost import latent_attention_bound
from tskernels.gpu.entry import gpu_kernel
from tskernels.gpu.latent_splits import ROWS, most_numbers, num_blocks
from tskernels.gpu.launch import (
    Argument,
    CudaSource,
    Launch,
    Operand,
    Out,
    Plan,
    Prepared,
    PreparedInput,
    Scalar,
    Scratch,
    ScratchSpace,
    TensorMap,
    Variant,
    Verification,
)
from tskernels.gpu.sizes import SMS, Dimension, Expression, Stride, common_divisor, larger, smaller
from tskernels.gpu.triton_entry import number, size
from tskernels.registry import Call
from tskernels.target import TCGEN05, Target, gpu

LATENT: Final = 512
ROTATED: Final = 64
_FP8_ROWS: Final[Mapping[str, Argument]] = {"cache": Operand(2), "cache_row_bytes": Scalar(Stride(2, 1))}
_BLOCK: Final = 64
"""Columns of a tensor map's boxes, and the most rows."""
_SHARED_BYTES: Final = 232448
_RUN: Final = Verification("run", "NVIDIA H100 80GB HBM3", "2026-11-27")


def _fits(call: Call) -> bool:
    """bf16 queries and rows of 512 + 64 elements, and no window."""
    q, rotated, cache = call.operands[:3]
    is_bf16 = {q.dtype, rotated.dtype, cache.dtype} == {"bf16"}
    return is_bf16 and (q.shape[-1], rotated.shape[-1]) == (LATENT, ROTATED) and not call.attributes.get("window")


@gpu_kernel(
    "ts::latent_attention",
    name="cuda",
    target=gpu("sm_90a"),
    dtypes=("bf16",),
    when=_fits,
    cost=latent_attention_bound,
    verified=_RUN,
    compilers=("nvcc",),
)
def mla_decode_sm90(call: Call, target: Target) -> Plan:
    """Where a sequence has more rows than one block multiplies, tensor cores are the limit, and another order of work is better."""
    halves, blocks = {"cache_left": _cache(4), "cache_right": _cache(5)}, {"cache": _cache(1)}
    few = _Kernel("sm90", "mla_decode", 12, halves, dependent=True, early=(2, 5))
    return _plan(call, _by_rows(call, few, _Kernel("sm90_gangs", "mla_decode_gangs", 12, blocks, dependent=True, early=(2, 5))))


@gpu_kernel(
    "ts::latent_attention",
    name="cuda_fp8_cache",
    target=gpu("sm_90a"),
    dtypes=("bf16",),
    when=_fits,
    cost=latent_attention_bound,
    layouts={2: FP8_CACHE},
    verified=_RUN,
    compilers=("nvcc",),
)
def mla_decode_fp8_sm90(call: Call, target: Target) -> Plan:
    """Rows are read as they lie, and widened on their way into shared memory."""
    return _plan(call, {1: _Kernel("sm90", "mla_decode", 12, _FP8_ROWS, constants={"FP8_CACHE": 1}, dependent=True)})


@gpu_kernel(
    "ts::latent_attention",
    name="cuda_tcgen05_fp8_cache",
    target=TCGEN05,
    dtypes=("bf16",),
    when=_fits,
    cost=latent_attention_bound,
    layouts={2: FP8_CACHE},
    verified=Verification("emulated"),
    compilers=("nvcc",),
)
def mla_decode_fp8_sm100(call: Call, target: Target) -> Plan:
    """Rows are read as they lie, and widened on their way into shared memory."""
    return _plan(call, {1: _Kernel("sm100", "mla_decode", 12, _FP8_ROWS, constants={"FP8_CACHE": 1})})


@gpu_kernel(
    "ts::latent_attention",
    name="cuda_tcgen05",
    target=TCGEN05,
    dtypes=("bf16",),
    when=_fits,
    cost=latent_attention_bound,
    verified=Verification("emulated"),
    compilers=("nvcc",),
)
def mla_decode_sm100(call: Call, target: Target) -> Plan:
    """Where a sequence has more rows than one block multiplies, pairs of blocks do."""
    blocks = _Kernel("sm100", "mla_decode", 8, {"cache": _cache(9)})
    pairs = _Kernel("sm100_pairs", "mla_decode_pairs", 8, {"keys": _cache(9, _BLOCK // 2), "values": _cache(4)}, together=2)
    return _plan(call, _by_rows(call, blocks, pairs))


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A function of a file, how it gets the cache, and how many of its blocks multiply together. dependent, early: as of a launch."""

    file: str
    function: str
    warps: int
    cache: Mapping[str, Argument]
    together: int = 1
    constants: Mapping[str, int] = field(default_factory=dict)
    dependent: bool = False
    early: tuple[int, ...] = ()


def _by_rows(call: Call, few: _Kernel, many: _Kernel) -> Mapping[int, _Kernel]:
    """Kernels for sequences of up to 64 rows, and for those of more."""
    heads = size(call, 0, 1)
    return {ROWS // heads + 1: many} if heads > ROWS else {1: few, ROWS // heads + 1: many}


def _plan(call: Call, kernels: Mapping[int, _Kernel]) -> Plan:
    """kernels: by the newest tokens of a sequence from which on each runs."""
    heads = size(call, 0, 1)
    variants = tuple(Variant((_launch(call, kernel),), newest=newest) for newest, kernel in kernels.items())
    # A cut through a sequence makes a partial result on both of its sides, in each of a gang's blocks.
    rows = SMS * (2 * ROWS)
    scratch = (
        Scratch("partials", rows * (LATENT * 2)),
        Scratch("partial_half_rows", rows * (2 * 8)),
        Scratch("counters", SMS * 4, zeroed=True),
    )
    listed = {"heads": heads, "expanded_from": number(call, "expanded_from", 0)}
    lists = [
        Prepared(_list(n), "tskernels.gpu.latent_splits:prepare", {**listed, "together": n}, most_numbers(heads, n))
        for n in dict.fromkeys(kernel.together for kernel in kernels.values())
    ]
    return Plan(variants, scratch, tuple(lists))


def _list(together: int) -> str:
    return "work" if together == 1 else "work_of_pairs"


def _launch(call: Call, kernel: _Kernel) -> Launch:
    heads = size(call, 0, 1)
    arguments: dict[str, Argument] = {
        "queries": _queries(0, heads, LATENT // _BLOCK),
        "rotated_queries": _queries(1, heads, 1),
        **kernel.cache,
        "work": PreparedInput(_list(kernel.together)),
        "tables": Operand(5),
        "out": Out(),
        "logarithms": Scalar(0, "i64"),
        **{name: ScratchSpace(name) for name in ("partials", "partial_half_rows", "counters")},
        "table_columns": Scalar(Stride(5, 0)),
        "page_size": Scalar(Dimension(2, 1)),
        "heads": Scalar(heads),
        "scale": Scalar(float(number(call, "scale")), "f32"),
    }
    return Launch(
        CudaSource(f"cuda/mla_decode_{kernel.file}.cu", kernel.function),
        (num_blocks(kernel.together), 1, 1),
        arguments,
        kernel.constants,
        warps=kernel.warps,
        shared=_SHARED_BYTES,
        cluster=kernel.together,
        dependent=kernel.dependent,
        early=kernel.early,
    )


def _queries(operand: int, heads: int, blocks: int) -> TensorMap:
    """Tokens and heads as one dimension of rows: where tokens are not as far apart as all their heads, there are none, and the driver
    refuses."""
    token, head = Stride(operand, 0), Stride(operand, 1)
    is_one = smaller(smaller(head * heads // token, 1), token // (head * heads))
    return TensorMap(
        Operand(operand),
        "bf16",
        (_BLOCK, Dimension(operand, 0) * heads * is_one, blocks),
        (head * 2, _BLOCK * 2),
        (_BLOCK, ROWS, blocks),
        128,
    )


def _cache(blocks: int, tokens: int = _BLOCK) -> TensorMap:
    """Boxes of as many rows as divide pages and parts of `tokens` tokens; those of a whole part have so many blocks of columns, others
    one."""
    rows = common_divisor(Dimension(2, 1), tokens)
    depth: Expression = larger(rows // tokens * blocks, 1)
    sizes = (_BLOCK, Dimension(2, 0) * Dimension(2, 1), (LATENT + ROTATED) // _BLOCK)
    return TensorMap(Operand(2), "bf16", sizes, (Stride(2, 1) * 2, _BLOCK * 2), (_BLOCK, rows, depth), 128)
