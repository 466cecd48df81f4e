"""How quantized weights are stored: the panels that kernels/csrc/quantized_formats.hpp describes, packed and unpacked.

A format's weights come as floats, which are then rounded (`quantized_rounding.py`), or as the blocks of a GGUF file
(`quantized_blocks.py`) or those that the codes of other checkpoints are put into (`quantized_affine.py`), whose values stay as they are.
Does not: run anything.

Legend: O outputs and K inputs of a weight; P panels; B blocks and G groups of a row; quads are four neighbours in k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tskernels.floats4 import E2M1_VALUES
from tskernels.quantized_affine import parse_affine4, parse_affine4_128, parse_affine8, parse_int8
from tskernels.quantized_blocks import (
    IQ4_VALUES,
    parse_iq4_xs,
    parse_mxfp4,
    parse_q3_k,
    parse_q4_0,
    parse_q4_1,
    parse_q4_k,
    parse_q5_0,
    parse_q5_1,
    parse_q5_k,
    parse_q6_k,
    parse_q8_0,
)
from tskernels.quantized_parts import GROUP, Parts
from tskernels.quantized_rounding import round_int4, round_int8

PANEL: Final = 32
_CHUNK: Final = 1 << 22
"""Weights that are packed at a time: what is computed on the way then stays small."""
LONGEST_ROW: Final = 131072
"""Of `int8`, whose sums over a row are 32 bits wide."""

Value = Callable[[Parts], Tensor]


@dataclass(frozen=True, slots=True)
class Format:
    """bits and offset of a code, which is stored without a sign; groups of a block, 0 where K is one; block, group: what the header of
    either says of an output. parse: rows to parts, by the importance of each input [K] where BY_IMPORTANCE has the format; value: parts
    to f32 [O, K]; block_codes and row_block_bytes: of the file's blocks, 0 of floats and where K is one."""

    name: str
    bits: int
    offset: int
    groups: int
    block: tuple[torch.dtype, ...]
    group: tuple[torch.dtype, ...]
    parse: Callable[..., Parts]
    value: Value
    block_codes: int = 0
    row_block_bytes: int = 0

    def takes(self, K: int) -> bool:
        """Whether a weight may have so many inputs."""
        return not (self.block_codes and K % self.block_codes) and (bool(self.groups) or K <= LONGEST_ROW)

    def num_bytes(self, outputs: int, K: int, gated: bool = False) -> int:
        """Of a weight in panels."""
        header, group = (sum(t.itemsize for t in types) * PANEL for types in (self.block, self.group))
        stored = self._stored(K)
        if not self.groups:
            return self._panels(outputs, gated) * (header + stored * PANEL)
        groups = stored // GROUP
        return self._panels(outputs, gated) * (groups // self.groups * header + groups * (group + GROUP * PANEL * self.bits // 8))

    def pack(self, rows: Tensor, gated: bool = False, importance_K: Tensor | None = None) -> Tensor:
        """Floats [O, K], or u8 [O, bytes] of a file's blocks, to one u8 run; of a format where K is one block, either. gated: the first
        half of the rows gates the second."""
        by = () if importance_K is None else (importance_K,)
        K = self._width(rows)
        order = _order(rows.shape[0], gated)
        packed = torch.empty(self.num_bytes(rows.shape[0], K, gated), dtype=torch.uint8).view(len(order) // PANEL, -1)
        for first, chunk in _chunks(order, K):
            some = rows[chunk.clamp(min=0)]
            if some.dtype != torch.uint8:
                some = some.float()
            some[chunk < 0] = 0
            panel = first // PANEL
            packed[panel : panel + len(chunk) // PANEL] = self._panels_of(self.parse(some, *by))
        return packed.view(-1)

    def unpack(self, packed: Tensor, outputs: int, K: int, gated: bool = False) -> Tensor:
        """What `pack` made, to f32 [O, K]: the values that the kernels compute with."""
        if packed.numel() != self.num_bytes(outputs, K, gated):
            raise ValueError(
                f"`{self.name}` [{outputs}, {K}] takes {self.num_bytes(outputs, K, gated)} bytes, but {packed.numel()} are given"
            )
        order = _order(outputs, gated)
        panels = packed.view(len(order) // PANEL, -1)
        rows = torch.empty(outputs, K)
        for first, chunk in _chunks(order, K):
            panel = first // PANEL
            values = self.value(self._parts_of(panels[panel : panel + len(chunk) // PANEL], K))[:, :K]
            rows[chunk[chunk >= 0]] = values[chunk >= 0]
        return rows

    def _width(self, rows: Tensor) -> int:
        if rows.dim() == 2 and rows.dtype == torch.uint8 and not self.groups:
            return rows.shape[1] - sum(t.itemsize for t in self.block)
        if rows.dim() != 2 or (rows.dtype == torch.uint8) != bool(self.row_block_bytes):
            given = "u8 [O, bytes]" if self.row_block_bytes else "floats [O, K]"
            raise ValueError(f"`{self.name}` packs {given}, but {rows.dtype} {list(rows.shape)} is given")
        if self.row_block_bytes and rows.shape[1] % self.row_block_bytes:
            raise ValueError(
                f"`{self.name}` has blocks of {self.row_block_bytes} bytes for {self.block_codes} weights, but a row of {rows.shape[1]} "
                f"bytes is given: K must be a multiple of {self.block_codes}"
            )
        K = rows.shape[1] // self.row_block_bytes * self.block_codes if self.row_block_bytes else rows.shape[1]
        self._stored(K)
        return K

    def _stored(self, K: int) -> int:
        if self.block_codes and K % self.block_codes:
            raise ValueError(f"`{self.name}` takes K in multiples of {self.block_codes}, but K is {K}")
        if not self.groups and K > LONGEST_ROW:
            raise ValueError(f"`{self.name}` takes K up to {LONGEST_ROW}, but K is {K}")
        unit = self.groups * GROUP or 8
        return -(-K // unit) * unit

    @staticmethod
    def _panels(outputs: int, gated: bool) -> int:
        return -(-(outputs // 2) // (PANEL // 2)) if gated else -(-outputs // PANEL)

    def _panels_of(self, parts: Parts) -> Tensor:
        panels, stored = parts.codes.shape[0] // PANEL, self._stored(parts.codes.shape[1])
        codes = parts.codes
        if stored != codes.shape[1]:
            codes = torch.nn.functional.pad(codes, (0, stored - codes.shape[1]), value=self.offset)
        groups = stored // GROUP if self.groups else 1
        # As words of four codes, which stay together.
        words = codes.view(torch.int32).view(panels, PANEL, groups, -1).permute(0, 2, 3, 1).contiguous()
        bits = _join(words.view(torch.uint8), self.bits).view(panels, groups, -1)
        whole = torch.cat([*(_plane(p, panels) for p in parts.group), bits], -1)
        if not self.groups:
            return torch.cat([*(_plane(p, panels) for p in parts.block), whole], -1).view(panels, -1)
        blocks = whole.view(panels, groups // self.groups, -1)
        return torch.cat([*(_plane(p, panels) for p in parts.block), blocks], -1).view(panels, -1)

    def _parts_of(self, packed: Tensor, K: int) -> Parts:
        panels, stored = packed.shape[0], self._stored(K)
        groups = stored // GROUP if self.groups else 1
        blocks = packed.reshape(panels, groups // (self.groups or 1), -1)
        block, rest = _take_planes(blocks, self.block)
        group, bits = _take_planes(rest.reshape(panels, groups, -1), self.group)
        quads = _split(bits.reshape(panels, groups, -1, PANEL * 4), self.bits)
        words = quads.view(torch.int32).permute(0, 3, 1, 2).contiguous().view(panels * PANEL, -1)
        return Parts(words.view(torch.uint8), block, group)


def _order(outputs: int, gated: bool) -> Tensor:
    """The row at each place of the panels in turn, -1 where there is none."""
    if not gated:
        return torch.nn.functional.pad(torch.arange(outputs), (0, -outputs % PANEL), value=-1)
    if outputs % 2:
        raise ValueError(f"of joined weights half the rows gate the other half, but there are {outputs}")
    gates = torch.nn.functional.pad(torch.arange(outputs // 2), (0, -(outputs // 2) % (PANEL // 2)), value=-1).view(-1, PANEL // 2)
    return torch.cat([gates, torch.where(gates < 0, -1, gates + outputs // 2)], 1).view(-1)


def _chunks(order: Tensor, K: int) -> Iterator[tuple[int, Tensor]]:
    step = max(_CHUNK // max(K, 1) // PANEL, 1) * PANEL
    for first in range(0, len(order), step):
        yield first, order[first : first + step]


def _plane(values: Tensor, panels: int) -> Tensor:
    """[O, N] of a header to bytes [P, N, 32 * size]."""
    together = values.view(panels, PANEL, -1).transpose(1, 2).contiguous()
    return together.view(torch.uint8).view(panels, values.shape[1], -1)


def _take_planes(packed: Tensor, types: tuple[torch.dtype, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    planes = []
    for dtype in types:
        size = PANEL * dtype.itemsize
        values = packed[..., :size].contiguous().view(dtype)
        planes.append(values.transpose(1, 2).reshape(-1, packed.shape[1]))
        packed = packed[..., size:]
    return tuple(planes), packed


def _join(quads: Tensor, bits: int) -> Tensor:
    """Codes [P, G, quads, 128] to the bytes that hold them: the lower four bits of two quads, then what is above."""
    if bits == 8:
        return quads
    low = quads & 15
    joined = [low[:, :, 0::2] | low[:, :, 1::2] << 4]
    above, rest = bits - 4, quads >> 4
    for first in range(0, 8 if above else 0, 8 // max(above, 1)):
        byte = rest[:, :, first].clone()
        for quad in range(1, 8 // above):
            byte |= rest[:, :, first + quad] << quad * above
        joined.append(byte[:, :, None])
    return torch.cat(joined, 2)


def _split(stored: Tensor, bits: int) -> Tensor:
    """What `_join` made, to codes [P, G, quads, 128]."""
    if bits == 8:
        return stored.contiguous()
    low = stored[:, :, :4]
    quads = torch.stack([low & 15, low >> 4], 3).flatten(2, 3)
    for quad in range(8 if bits > 4 else 0):
        above = bits - 4
        byte = stored[:, :, 4 + quad * above // 8]
        quads[:, :, quad] |= (byte >> quad * above % 8 & (1 << above) - 1) << 4
    return quads


def _grouped(parts: Parts, offset: int, subgroups: int = 1) -> Tensor:
    """Codes as floats [O, scales, k of each]."""
    return (parts.codes.float() - offset).view(parts.codes.shape[0], -1, GROUP // subgroups)


def _by_channel(parts: Parts) -> Tensor:
    return (parts.codes.float() - 128) * parts.block[0]


def _by_group(offset: int) -> Value:
    return lambda parts: (_grouped(parts, offset) * parts.group[0].float()[..., None]).flatten(1)


def _by_group_and_min(parts: Parts) -> Tensor:
    d, m = (plane.float()[..., None] for plane in parts.group)
    return (_grouped(parts, 0) * d + m).flatten(1)


def _by_super_scale_and_min(parts: Parts) -> Tensor:
    d, dmin = (plane.float().repeat_interleave(8, 1) for plane in parts.block)
    scale, m = (plane.float() for plane in parts.group)
    return (_grouped(parts, 0) * (d * scale)[..., None] - (dmin * m)[..., None]).flatten(1)


def _by_super_scale(offset: int) -> Value:
    return lambda parts: (_grouped(parts, offset, 2) * _super_scales(parts)[..., None]).flatten(1)


def _super_scales(parts: Parts) -> Tensor:
    """[O, scales]"""
    scale = torch.stack(parts.group, 2).flatten(1).float()
    return parts.block[0].float().repeat_interleave(8 * len(parts.group), 1) * scale


def _by_scale_of_table(parts: Parts) -> Tensor:
    return (_looked_up(parts, IQ4_VALUES) * parts.group[0].float()[..., None]).flatten(1)


def _by_super_scale_of_table(parts: Parts) -> Tensor:
    return (_looked_up(parts, IQ4_VALUES) * _super_scales(parts)[..., None]).flatten(1)


def _by_power_of_table(parts: Parts) -> Tensor:
    """A group's scale is 2 to the power of its byte less 127."""
    return torch.ldexp(_looked_up(parts, E2M1_VALUES), parts.group[0].int()[..., None] - 127).flatten(1)


def _looked_up(parts: Parts, values: Sequence[float]) -> Tensor:
    """[O, G, 32]"""
    return torch.tensor(values, dtype=torch.float32)[parts.codes.int()].view(parts.codes.shape[0], -1, GROUP)


def _by_scale_and_zero(offset: int) -> Value:
    def value(parts: Parts) -> Tensor:
        d, zero = (plane.float()[..., None] for plane in parts.block)
        codes = (parts.codes.float() - offset).view(*parts.block[0].shape, -1)
        return ((codes - zero) * d).flatten(1)

    return value


_FLOAT: Final = torch.float32
_HALF: Final = torch.float16
_BYTE: Final = torch.uint8

FORMATS: Final[Mapping[str, Format]] = {
    entry.name: entry
    for entry in (
        Format("int8", 8, 128, 0, (_FLOAT,), (), lambda rows: (parse_int8 if rows.dtype == _BYTE else round_int8)(rows), _by_channel),
        Format("int4", 4, 0, 1, (), (_HALF, _HALF), round_int4, _by_group_and_min),
        Format("q8_0", 8, 128, 1, (), (_HALF,), parse_q8_0, _by_group(128), 32, 34),
        Format("q4_0", 4, 8, 1, (), (_HALF,), parse_q4_0, _by_group(8), 32, 18),
        Format("q4_1", 4, 0, 1, (), (_HALF, _HALF), parse_q4_1, _by_group_and_min, 32, 20),
        Format("q5_0", 5, 16, 1, (), (_HALF,), parse_q5_0, _by_group(16), 32, 22),
        Format("q4_k", 4, 0, 8, (_HALF, _HALF), (_BYTE, _BYTE), parse_q4_k, _by_super_scale_and_min, 256, 144),
        Format("q5_k", 5, 0, 8, (_HALF, _HALF), (_BYTE, _BYTE), parse_q5_k, _by_super_scale_and_min, 256, 176),
        Format("q6_k", 6, 32, 8, (_HALF,), (torch.int8, torch.int8), parse_q6_k, _by_super_scale(32), 256, 210),
        Format("q5_1", 5, 0, 1, (), (_HALF, _HALF), parse_q5_1, _by_group_and_min, 32, 24),
        Format("q3_k", 4, 4, 8, (_HALF,), (torch.int8, torch.int8), parse_q3_k, _by_super_scale(4), 256, 110),
        Format("iq4_nl", 4, 0, 1, (), (_HALF,), parse_q4_0, _by_scale_of_table, 32, 18),
        Format("iq4_xs", 4, 0, 8, (_HALF,), (torch.int8,), parse_iq4_xs, _by_super_scale_of_table, 256, 136),
        Format("affine4_32", 4, 8, 1, (_FLOAT, torch.int8), (), parse_affine4, _by_scale_and_zero(8), 32, 21),
        Format("affine4_128", 4, 8, 4, (_FLOAT, torch.int8), (), parse_affine4_128, _by_scale_and_zero(8), 128, 69),
        Format("affine8_32", 8, 128, 1, (_FLOAT, torch.int8), (), parse_affine8, _by_scale_and_zero(128), 32, 37),
        Format("mxfp4", 4, 0, 1, (), (_BYTE,), parse_mxfp4, _by_power_of_table, 32, 17),
    )
}
