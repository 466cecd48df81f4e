"""How attention whose rows are cut into tiles, and whose keys into splits, is launched: a plan's part that all ops of it share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tskernels.gpu.combination import combine
from tskernels.gpu.launch import (
    Argument,
    Launch,
    Number,
    Operand,
    Out,
    Plan,
    Prepared,
    PreparedInput,
    Scalar,
    Scratch,
    ScratchSpace,
    Variant,
)
from tskernels.gpu.sizes import SMS, Dimension, Expression, Stride, cdiv, larger
from tskernels.gpu.splits import RECORD
from tskernels.gpu.triton_entry import number, only, padded, size, source, stored_type, stride
from tskernels.registry import Call

NEVER: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys that a thread block takes at a time, and how it is compiled."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """Of sequences with few rows and with many; wide_from: tokens of a step from which there are wide ones; blocks: thread blocks that a
    multiprocessor is given of narrow tiles alone; wide_blocks: where there are wide ones."""

    narrow: Tile
    wide: Tile
    wide_from: int
    blocks: int
    wide_blocks: int


@dataclass(frozen=True, slots=True)
class Form:
    """Constants of a function, and where it runs with them: 1 there, else 0, in sizes of the call."""

    constants: Mapping[str, Number]
    runs: int | Expression = 1


@dataclass(frozen=True, slots=True)
class SplitAttention:
    """A function with its arguments but for those of splits; cache, spans: the operands; heads: that have keys of their own, each for a
    group of rows a token, whose results are so wide; repeats: a block takes one narrow split after the other; forms: one of which runs."""

    function: str
    arguments: Mapping[str, Argument]
    strides: Mapping[str, Argument]
    constants: Mapping[str, Number]
    tiles: Tiles
    cache: int
    spans: int
    heads: int
    group: int
    width: int
    sinks: int | None = None
    expanded_from: int = 0
    repeats: bool = False
    forms: tuple[Form, ...] = (Form({}),)


def paged(call: Call, tiles: Tiles, *, has_sinks: bool = False) -> Plan:
    heads, group, width = (size(call, 0, i) for i in (1, 2, 3))
    constants = {
        "HEADS": heads,
        "GROUP": group,
        "WIDTH": width,
        "PADDED": padded(width, 16),
        "SINKS": has_sinks,
        "SCALE": number(call, "scale"),
        "WINDOW": number(call, "window"),
        "SOFTCAP": number(call, "softcap"),
    }
    arguments: dict[str, Argument] = {"q": Operand(0), "cache": Operand(1), "sinks": Operand(2 if has_sinks else 0)}
    strides = {"q_token": stride(0, 0), "q_head": stride(0, 1), "q_member": stride(0, 2), "page_size": Scalar(Dimension(1, 1))}
    spans, sinks = (3, 2) if has_sinks else (2, None)
    return split_plan(
        call, SplitAttention("attend", arguments, strides, constants, tiles, 1, spans, heads, group, width, sinks, repeats=True)
    )


def split_plan(call: Call, attention: SplitAttention) -> Plan:
    """In steps of few tokens, or of few of each sequence, all tiles are narrow: then there is one launch less."""
    tiles, heads, group = attention.tiles, attention.heads, attention.group
    narrow, wide = tiles.narrow, tiles.wide
    room = larger(1, SMS * max(tiles.blocks, tiles.wide_blocks) // heads)
    dtype = call.operands[0].dtype
    types = {
        **dict.fromkeys((*attention.arguments, "out", "sinks"), dtype),
        "cache": stored_type(call, attention.cache),
        "tables": "i32",
        "work": "i32",
        "partials": "f32",
        "logs": "f32",
    }

    def capacity(tile: Tile) -> Expression:
        """Of splits, which are as many as there is room for, or as there are tiles."""
        return larger(room, cdiv(Dimension(0, 0) * group, tile.rows) + Dimension(attention.spans, 0) * 3 + 1)

    def of(tile: Tile, is_wide: bool, blocks: Expression) -> tuple[Launch, ...]:
        arguments: dict[str, Argument] = {
            **attention.arguments,
            "tables": Operand(attention.spans + 2),
            "work": PreparedInput("work"),
            "out": Out(),
            "partials": ScratchSpace("partials"),
            "logs": ScratchSpace("logs"),
            **attention.strides,
            "table_row": Scalar(Stride(attention.spans + 2, 0)),
        }
        constants = {"WIDE": int(is_wide), **attention.constants, "ROWS": tile.rows, "KEYS": tile.keys, "ROOM": wide.rows}
        function, addresses = source("attention", attention.function), only(types, arguments)
        facts = (addresses, tile.warps, tile.stages)
        return tuple(
            Launch(function, (blocks * form.runs, heads, 1), arguments, {**constants, **form.constants}, *facts, dependent=True)
            for form in attention.forms
        )

    combined: dict[str, Argument] = {
        "sinks": Operand(attention.sinks or 0),
        "work": PreparedInput("work"),
        "out": Out(),
        "partials": ScratchSpace("partials"),
        "logs": ScratchSpace("logs"),
        "first_head": Scalar(0),
    }
    result: dict[str, Number] = {
        "TOTAL": heads,
        "HEADS": heads,
        "GROUP": group,
        "WIDTH": attention.width,
        "PADDED": padded(attention.width, 16),
        "SINKS": attention.sinks is not None,
        "ROOM": wide.rows,
    }

    def joined(rows: int) -> Launch:
        return combine(combined, result, types, room, rows, narrow.rows)

    device = larger(1, SMS * tiles.blocks // heads)
    all_narrow = Variant((*of(narrow, False, device if attention.repeats else capacity(narrow)), joined(narrow.rows)))
    mixed = of(narrow, False, device if attention.repeats else capacity(wide)) if group <= narrow.rows else ()
    newest = narrow.rows // group + 1 if attention.repeats else 1
    both = Variant((*mixed, *of(wide, True, capacity(wide)), joined(wide.rows)), tiles.wide_from, newest)
    wide_from = tiles.wide_from if narrow != wide else NEVER
    variants = (all_narrow,) if narrow == wide else (both,) if tiles.wide_from == newest == 1 else (all_narrow, both)
    numbers = {
        "heads": heads,
        "group": group,
        "narrow": narrow.rows,
        "wide": wide.rows,
        "wide_from": wide_from,
        "wide_newest": newest,
        "unit": max(narrow.keys, wide.keys),
        "blocks": tiles.blocks,
        "wide_blocks": tiles.wide_blocks,
        "window": number(call, "window"),
        "expanded_from": attention.expanded_from,
    }
    work = Prepared("work", "tskernels.gpu.splits:work", numbers, (capacity(narrow) * 2 + room + 1) * RECORD)
    partial = room * (heads * wide.rows)
    scratch = (Scratch("partials", partial * (attention.width * 4)), Scratch("logs", partial * 4))
    return Plan(variants, scratch, (work,))
