"""The plan of attention whose tiles of many rows are worked on in CUDA C++ (cuda/attention_sm90.cu), those of few rows in Triton."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tskernels.cost import attention_bound
from tskernels.gpu.entry import gpu_kernel
from tskernels.gpu.launch import (
    CudaSource,
    Launch,
    Operand,
    Out,
    Plan,
    PreparedInput,
    Scalar,
    Scratch,
    ScratchSpace,
    TensorMap,
    Verification,
)
from tskernels.gpu.sizes import SMS, Dimension, Stride, common_divisor
from tskernels.gpu.split_attention import Tile, Tiles, paged
from tskernels.gpu.triton_entry import number, size
from tskernels.registry import Call
from tskernels.target import Target, gpu

MOST_ROWS: Final = 128
KEYS: Final = 128
"""Rows and keys of a tile, at most."""
_BLOCK: Final = 64
"""Columns of a tensor map's boxes."""
_NARROW: Final = Tile(16, 64, 4, 2)
_WIDE_FROM, _BLOCKS = 32, 2
_SHARED_BYTES: Final = 197_632
"""Of the source's `Shared`."""


def _fits(call: Call) -> bool:
    """bf16 queries and keys of 64 or 128 elements, at most 128 heads to a key, and neither window nor cap."""
    group, width = call.operands[0].shape[2:]
    is_bf16 = {operand.dtype for operand in call.operands[:2]} == {"bf16"}
    fits = width in (64, 128) and group is not None and group <= MOST_ROWS
    return is_bf16 and fits and not call.attributes.get("window") and not call.attributes.get("softcap")


@gpu_kernel(
    "ts::attention",
    name="cuda",
    target=gpu("sm_90a"),
    dtypes=("bf16",),
    when=_fits,
    cost=attention_bound,
    verified=Verification("run", "NVIDIA H100 80GB HBM3", "2026-11-27"),
    compilers=("nvcc", "triton"),
)
def attention_sm90(call: Call, target: Target) -> Plan:
    """Triton's plan with another launch for wide tiles, which are whole tokens."""
    heads, group, width = (size(call, 0, i) for i in (1, 2, 3))
    rows = MOST_ROWS // group * group
    made = paged(call, Tiles(_NARROW, Tile(rows, KEYS, 12, 1), _WIDE_FROM, _BLOCKS, _BLOCKS))
    wide = Launch(
        CudaSource("cuda/attention_sm90.cu", "attend"),
        (SMS, 1, 1),
        {
            "queries": _queries(call),
            "cache": _cache(call),
            "work": PreparedInput("work"),
            "tables": Operand(4),
            "lengths": Operand(3),
            "out": Out(),
            **{name: ScratchSpace(name) for name in ("partials", "logs", "taken")},
            "table_columns": Scalar(Stride(4, 0)),
            "page_size": Scalar(Dimension(1, 1)),
            "scale": Scalar(float(number(call, "scale")), "f32"),
        },
        {"HEADS": heads, "GROUP": group, "WIDTH": width},
        warps=12,
        shared=_SHARED_BYTES,
        dependent=True,
    )
    variants = tuple(
        replace(variant, launches=tuple(wide if launch.constants.get("WIDE") else launch for launch in variant.launches))
        for variant in made.variants
    )
    return replace(made, variants=variants, scratch=(*made.scratch, Scratch("taken", 4, zeroed=True)))


def _queries(call: Call) -> TensorMap:
    """Boxes of whole tokens' rows of one head of keys, and of a block of columns."""
    heads, group, width = (size(call, 0, i) for i in (1, 2, 3))
    token, head, member = (Stride(0, i) * 2 for i in range(3))
    sizes = (_BLOCK, group, Dimension(0, 0), width // _BLOCK, heads)
    return TensorMap(Operand(0), "bf16", sizes, (member, token, _BLOCK * 2, head), (_BLOCK, group, MOST_ROWS // group, 1, 1), 128)


def _cache(call: Call) -> TensorMap:
    """Boxes of a block of columns, of as many tokens as divide pages and tiles."""
    heads, width = size(call, 0, 1), size(call, 0, 3)
    sizes = (_BLOCK, Dimension(1, 0) * Dimension(1, 1), 2 * heads * width // _BLOCK)
    tokens = common_divisor(Dimension(1, 1), KEYS)
    return TensorMap(Operand(1), "bf16", sizes, (Stride(1, 1) * 2, _BLOCK * 2), (_BLOCK, tokens, 1), 128)
