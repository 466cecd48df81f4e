"""Plans of latent attention in CUDA C++ (cuda/mla_decode_*.cu): persistent thread blocks over a list of work that the host makes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tskernels.cache_layouts import FP8_CACHE
from tskernels.cost import latent_attention_bound
from tskernels.gpu.entry import gpu_kernel
from tskernels.gpu.latent_splits import ROWS, most_numbers
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
from tskernels.gpu.triton_entry import is_hopper, number, size
from tskernels.registry import Call
from tskernels.target import Target, gpu

LATENT: Final = 512
ROTATED: Final = 64
_BLOCK: Final = 64
"""Columns of a tensor map's boxes, and the most rows."""
_SHARED_BYTES: Final = 232448


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
    verified=Verification("run", "NVIDIA H100 80GB HBM3", "2026-11-26"),
    compiler="nvcc",
)
def mla_decode_sm90(call: Call, target: Target) -> Plan:
    """Halves of a tile are loaded on their own, four and five blocks of columns."""
    return _plan(call, "sm90", 12, {"cache_left": _cache(4), "cache_right": _cache(5)})


@gpu_kernel(
    "ts::latent_attention",
    name="cuda_tcgen05",
    target=gpu("sm_100a"),
    dtypes=("bf16",),
    when=_fits,
    cost=latent_attention_bound,
    verified=Verification("emulated"),
    compiler="nvcc",
)
def mla_decode_sm100(call: Call, target: Target) -> Plan:
    return _plan(call, "sm100", 8, {"cache": _cache(9)})


for _architecture, _name in (("sm_90a", "cuda"), ("sm_100a", "cuda_tcgen05")):

    @gpu_kernel(
        "ts::latent_attention",
        name=f"{_name}_{FP8_CACHE}",
        target=gpu(_architecture),
        dtypes=("bf16",),
        when=_fits,
        cost=latent_attention_bound,
        layouts={2: FP8_CACHE},
        verified=Verification("emulated"),
        compiler="nvcc",
    )
    def mla_decode_fp8(call: Call, target: Target) -> Plan:
        """Rows are read as they lie, and widened on their way into shared memory."""
        cache: dict[str, Argument] = {"cache": Operand(2), "cache_row_bytes": Scalar(Stride(2, 1))}
        return _plan(call, "sm90" if is_hopper(target) else "sm100", 12, cache, {"FP8_CACHE": 1})


def _plan(
    call: Call, architecture: str, warps: int, cache: Mapping[str, Argument], constants: Mapping[str, int] = MappingProxyType({})
) -> Plan:
    heads = size(call, 0, 1)
    arguments: dict[str, Argument] = {
        "queries": _queries(0, heads, LATENT // _BLOCK),
        "rotated_queries": _queries(1, heads, 1),
        **cache,
        "work": PreparedInput("work"),
        "tables": Operand(5),
        "out": Out(),
        "logarithms": Scalar(0, "i64"),
        **{name: ScratchSpace(name) for name in ("partials", "partial_logarithms", "counters")},
        "table_columns": Scalar(Stride(5, 0)),
        "page_size": Scalar(Dimension(2, 1)),
        "heads": Scalar(heads),
        "scale": Scalar(float(number(call, "scale")), "f32"),
    }
    source = CudaSource(f"cuda/mla_decode_{architecture}.cu", "mla_decode")
    launch = Launch(source, (SMS, 1, 1), arguments, constants, warps=warps, shared=_SHARED_BYTES)
    # A cut through a sequence makes a partial result on both of its sides, in each of a gang's blocks.
    partials = SMS * (2 * ROWS * 4)
    return Plan(
        (Variant((launch,)),),
        (Scratch("partials", partials * LATENT), Scratch("partial_logarithms", partials), Scratch("counters", SMS * 4, zeroed=True)),
        (Prepared("work", "tskernels.gpu.latent_splits:prepare", {"heads": heads}, most_numbers(heads)),),
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


def _cache(blocks: int) -> TensorMap:
    """Boxes of as many rows as divide pages and tiles; those of a whole tile have so many blocks of columns, others one."""
    rows = common_divisor(Dimension(2, 1), _BLOCK)
    depth: Expression = larger(rows // _BLOCK * blocks, 1)
    sizes = (_BLOCK, Dimension(2, 0) * Dimension(2, 1), (LATENT + ROTATED) // _BLOCK)
    return TensorMap(Operand(2), "bf16", sizes, (Stride(2, 1) * 2, _BLOCK * 2), (_BLOCK, rows, depth), 128)
