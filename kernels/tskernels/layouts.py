"""How a weight may be stored: by rows, or in the order in which a kernel reads it. Imports no torch.

A layout says nothing of what a weight is: its type and shape stay those of its rows, which `unpack` gives back: bit for bit, but for
the quantized layouts, of which it gives the values that kernels compute with.

Legend: O outputs and K inputs of a weight; N experts, whose weights are stacked; F gates, and as many outputs that they gate; P panels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tskernels.cost import PANEL
from tskernels.dtypes import dtype_name
from tskernels.registry import ROWS
from tskernels.screen import pack_screen, stored_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from tskernels.quantized import Format

PANELS: Final = "panels"
GATED_PANELS: Final = "gated_panels"
SCREEN: Final = "screen"
FROM_FLOATS: Final = ("int8", "int4", "q8_0")
"""The quantized layouts that are packed from rows; all but `int4` are packed from a checkpoint's blocks."""
BY_IMPORTANCE: Final = ("int4",)
"""Those of them whose rounding has a choice."""
OF_GGUF: Final = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
"""Those that are packed from the blocks of a GGUF file."""
AFFINE: Final = ("affine4_32", "affine4_128", "affine8_32")
"""Those of codes of so many bits with a scale and a zero point for each so many inputs, which other checkpoints have."""
QUANTIZED: Final = ("int8", "int4", *OF_GGUF, *AFFINE)
"""The formats of `quantized.py`; `gated_` before one is its layout of joined weights of which half gates the other."""
STACKED: Final = ("mxfp4",)
"""The formats of `quantized.py` that stacked weights may be in, those of a mixture. Their kernels compute with the values."""

Sizes = Sequence[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """takes: whether weights of an element type and shape can be stored so; stored: element type and shape of what is then stored; pack:
    rows (or blocks, see FROM_FLOATS) to that; unpack: that to rows of a shape, None where it is only a help to the rows, which are stored
    too. is_chosen: the compiler may choose it by cost, since it keeps every bit; pack_by: as pack, by the importance of each input [K],
    where the rounding has a choice."""

    name: str
    takes: Callable[[str, Sizes], bool]
    stored: Callable[[str, Sizes], tuple[str, tuple[int, ...]]]
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, Sizes], Tensor] | None
    is_chosen: bool = True
    pack_by: Callable[[Tensor, Tensor], Tensor] | None = None


def layout(name: str) -> Layout:
    """KeyError where there is none of that name."""
    return LAYOUTS[name]


def gated(name: str) -> str | None:
    """The layout of two weights in one layout that are joined, the first of which gates the second: None where there is none."""
    if name == ROWS:
        return ROWS
    return f"gated_{name}" if f"gated_{name}" in LAYOUTS else None


def format_of(name: str) -> str | None:
    """The format of a quantized layout, None for the others."""
    found = name.removeprefix("gated_")
    return found if found in (*QUANTIZED, *STACKED) else None


def blocks_of_codes(name: str, codes_OK: Tensor, scale_OB: Tensor, zero_OB: Tensor) -> Tensor:
    """What `int8` or a layout of AFFINE is packed from, u8 [O, bytes]: scale * (code - zero), of `int8` one run of inputs whose zero
    point is 128. Codes and zero points u8, scales f32; B of them for as many inputs each as the layout has."""
    from tskernels.quantized_affine import affine_blocks, int8_rows

    if name == "int8":
        return int8_rows(codes_OK ^ 128, scale_OB)
    return affine_blocks(codes_OK, scale_OB, zero_OB, 4 if name.startswith("affine4") else 8)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _is_matrix(dtype: str, shape: Sizes) -> bool:
    return dtype in ("bf16", "f32") and len(shape) == 2 and all(shape)


# ---- panels: 32 outputs side by side, so that each lane of a vector is one; of bf16 two neighbours in k lie together. Of stacked weights
# each is in panels of its own.


def _in_panels(dtype: str, shape: Sizes) -> bool:
    return _is_matrix(dtype, shape[-2:]) and len(shape) <= 3 and all(shape)


def _panels(dtype: str, shape: Sizes) -> tuple[str, tuple[int, ...]]:
    *stacked, outputs, inner = shape
    panels = (*stacked, _up(outputs, PANEL) // PANEL)
    return dtype, (*panels, _up(inner, 2) // 2, PANEL, 2) if dtype == "bf16" else (*panels, inner, PANEL)


def _pack_panels(w: Tensor) -> Tensor:
    """`[O, K]`, or `[N, O, K]`."""
    import torch

    return _pack_matrix(w) if w.dim() == 2 else torch.stack([_pack_matrix(w_OK) for w_OK in w])


def _pack_matrix(w_OK: Tensor) -> Tensor:
    import torch

    outputs, inner = w_OK.shape
    if dtype_name(w_OK.dtype) != "bf16":
        return _padded(w_OK, _up(outputs, PANEL), inner).view(-1, PANEL, inner).transpose(1, 2).contiguous()
    # a pair is moved as one number: half as many moves
    pairs = _padded(w_OK, _up(outputs, PANEL), _up(inner, 2)).view(torch.int32)
    stored = pairs.view(-1, PANEL, pairs.shape[1]).transpose(1, 2).contiguous().view(w_OK.dtype)
    return stored.view(*stored.shape[:2], PANEL, 2)


def _unpack_panels(stored: Tensor, shape: Sizes) -> Tensor:
    *stacked, outputs, inner = shape
    in_pairs = stored.dim() - len(stacked) == 4
    # panels, k, 32, 2? to panels, 32, k, 2?
    whole = stored.transpose(-3, -2) if in_pairs else stored.transpose(-2, -1)
    whole = whole.reshape(*stacked, stored.shape[len(stacked)] * PANEL, -1)
    return whole[..., :outputs, :inner].contiguous()


def _padded(w: Tensor, outputs: int, inner: int) -> Tensor:
    if tuple(w.shape) == (outputs, inner):
        return w.contiguous()
    padded = w.new_zeros(outputs, inner)
    padded[: w.shape[0], : w.shape[1]] = w
    return padded


# ---- gated panels: of joined weights, the gates first, each panel has 16 gates and then what they gate.


def _in_gated_panels(dtype: str, shape: Sizes) -> bool:
    return _is_matrix(dtype, shape) and shape[0] % 2 == 0


def _gated_panels(dtype: str, shape: Sizes) -> tuple[str, tuple[int, ...]]:
    return _panels(dtype, (2 * _up(shape[0] // 2, PANEL // 2), shape[1]))


def _pack_gated_panels(w_OK: Tensor) -> Tensor:
    outputs, inner = w_OK.shape
    wide = _up(outputs // 2, PANEL // 2)
    together = w_OK.new_empty(wide // (PANEL // 2), 2, PANEL // 2, inner)
    for index, half in enumerate((w_OK[: outputs // 2], w_OK[outputs // 2 :])):
        together[:, index] = _padded(half, wide, inner).view(-1, PANEL // 2, inner)
    return _pack_matrix(together.view(2 * wide, inner))


def _unpack_gated_panels(stored: Tensor, shape: Sizes) -> Tensor:
    outputs, inner = shape
    wide = _up(outputs // 2, PANEL // 2)
    together = _unpack_panels(stored, (2 * wide, inner)).view(-1, 2, PANEL // 2, inner)
    return together.transpose(0, 1).reshape(2, wide, inner)[:, : outputs // 2].reshape(outputs, inner)


# ---- screen: bytes beside the rows, with bounds of their error.


def _screened(dtype: str, shape: Sizes) -> tuple[str, tuple[int, ...]]:
    return "u8", (stored_bytes(*shape),)


# ---- quantized: bytes in place of the rows. What they mean is said in quantized.py, which needs torch.


def _quantized(name: str, is_gated: bool) -> Layout:
    def form() -> Format:
        from tskernels.quantized import FORMATS

        return FORMATS[name]

    def takes(dtype: str, shape: Sizes) -> bool:
        return _is_matrix(dtype, shape) and not (is_gated and shape[0] % 2) and form().takes(shape[1])

    def stored(dtype: str, shape: Sizes) -> tuple[str, tuple[int, ...]]:
        return "u8", (form().num_bytes(shape[0], shape[1], is_gated),)

    def pack(rows: Tensor) -> Tensor:
        if name == "q8_0" and rows.is_floating_point():
            from tskernels.quantized_q8_0 import q8_0_blocks

            rows = q8_0_blocks(rows.contiguous())
        return form().pack(rows, is_gated)

    def pack_by(rows: Tensor, importance_K: Tensor) -> Tensor:
        return form().pack(rows, is_gated, importance_K)

    def unpack(stored: Tensor, shape: Sizes) -> Tensor:
        return form().unpack(stored, shape[0], shape[1], is_gated)

    by = pack_by if name in BY_IMPORTANCE else None
    return Layout(f"gated_{name}" if is_gated else name, takes, stored, pack, unpack, is_chosen=False, pack_by=by)


def _stacked(name: str) -> Layout:
    """Of weights [N, O, K], each in panels of its own."""

    def form() -> Format:
        from tskernels.quantized import FORMATS

        return FORMATS[name]

    def takes(dtype: str, shape: Sizes) -> bool:
        return len(shape) == 3 and _is_matrix(dtype, shape[1:]) and bool(shape[0]) and form().takes(shape[2])

    def stored(dtype: str, shape: Sizes) -> tuple[str, tuple[int, ...]]:
        return "u8", (shape[0], form().num_bytes(shape[1], shape[2]))

    def pack(blocks_NOb: Tensor) -> Tensor:
        import torch

        return torch.stack([form().pack(blocks) for blocks in blocks_NOb])

    def unpack(packed: Tensor, shape: Sizes) -> Tensor:
        import torch

        return torch.stack([form().unpack(each, shape[1], shape[2]) for each in packed])

    return Layout(name, takes, stored, pack, unpack, is_chosen=False)


LAYOUTS: Final[Mapping[str, Layout]] = {
    entry.name: entry
    for entry in (
        Layout(ROWS, lambda dtype, shape: True, lambda dtype, shape: (dtype, tuple(shape)), lambda w: w, lambda w, shape: w),
        Layout(PANELS, _in_panels, _panels, _pack_panels, _unpack_panels),
        Layout(GATED_PANELS, _in_gated_panels, _gated_panels, _pack_gated_panels, _unpack_gated_panels),
        Layout(SCREEN, _is_matrix, _screened, pack_screen, None, is_chosen=False),
        *(_quantized(name, is_gated) for name in QUANTIZED for is_gated in (False, True)),
        *map(_stacked, STACKED),
    )
}
