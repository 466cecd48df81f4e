"""Plan of latent attention with a key and a value for each head, which are made of the cache's rows first, once for a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tskernels.cost import expanded_attention_bound
from tskernels.dtypes import size_bytes
from tskernels.expansion import MOST_KEYS
from tskernels.gpu.launch import (
    Argument,
    Launch,
    Number,
    Operand,
    Plan,
    Prepared,
    PreparedInput,
    Scalar,
    Scratch,
    ScratchSpace,
    Variant,
    Verification,
)
from tskernels.gpu.sizes import SMS, Dimension, Expression, Stride, cdiv, larger, smaller
from tskernels.gpu.split_attention import COMBINED_ROWS
from tskernels.gpu.splits import EXPANSION, RECORD
from tskernels.gpu.triton_entry import cache_kernel, is_nvidia, number, only, padded, size, source, stored_type, stride
from tskernels.registry import Call, one_float_type
from tskernels.target import Target

_MOST_BYTES: Final = 1 << 30
"""Of keys and values, where as many as can be are expanded: so many heads are worked on at a time."""
_WIDEST: Final = 256
_RUN: Final = Verification("run", "NVIDIA H200", "2026-11-26")
"""By benchmarks/mla_prefill.py."""
_FEW, _CONTENT, _ROTATED, _CACHE, _K_UP, _V_UP, _SPANS, _, _TABLES = range(9)


@dataclass(frozen=True, slots=True)
class Tile:
    """rows and keys that a thread block attends to at a time; made: keys that one expands, `depth` latent elements at a time."""

    rows: int
    keys: int
    warps: int
    stages: int
    made: int
    depth: int


def _tile(call: Call, target: Target) -> Tile:
    depth = min(64, padded(size(call, _K_UP, 2), 16))
    if call.operands[_FEW].dtype == "f32":
        return Tile(16, 16, 4, 1, 32, min(32, depth))
    if not is_nvidia(target):  # accumulators lie in registers
        return Tile(64, 64, 4, 1, 64, min(32, depth))
    if max(size(call, _CONTENT, 2), size(call, _FEW, 2)) > 128:
        return Tile(64, 32, 8, 2, 64, depth)
    return Tile(128, 64, 8, 3, 128, depth)


def _fits(call: Call) -> bool:
    """one float type, heads of at most 256 elements, and that some sequences are expanded."""
    return one_float_type(call) and max(size(call, _CONTENT, 2), size(call, _FEW, 2)) <= _WIDEST and number(call, "expanded_from") > 0


@cache_kernel("ts::expanded_attention", _CACHE, cost=expanded_attention_bound, when=_fits, verified=_RUN)
def expanded_attention(call: Call, target: Target) -> Plan:
    """Steps of fewer tokens than a sequence is expanded from launch nothing."""
    heads, content, values = size(call, _FEW, 1), size(call, _CONTENT, 2), size(call, _FEW, 2)
    latent, rotated = size(call, _K_UP, 2), size(call, _ROTATED, 2)
    expanded_from = int(number(call, "expanded_from"))
    tile, dtype = _tile(call, target), call.operands[_FEW].dtype
    element = size_bytes(dtype)
    most = max(1, _MOST_BYTES // (MOST_KEYS * (content + values) * element))
    group = max(n for n in range(1, min(heads, most) + 1) if heads % n == 0)
    tokens = Dimension(_FEW, 0)
    sequences = smaller(Dimension(_SPANS, 0), tokens // expanded_from)
    keys = smaller(MOST_KEYS, sequences * Dimension(_TABLES, 1) * Dimension(_CACHE, 1))
    room = larger(1, SMS // group)
    splits = larger(room, cdiv(tokens, tile.rows) + sequences)
    made_tiles = cdiv(keys, tile.made) + sequences
    types = {
        "cache": stored_type(call, _CACHE),
        **dict.fromkeys(("w", "content", "rotated", "keys", "values", "turned", "out", "sinks"), dtype),
        **dict.fromkeys(("tables", "work", "tiles"), "i32"),
        **dict.fromkeys(("partials", "logs"), "f32"),
    }

    def launch(
        function: str,
        grid: tuple[int | Expression, ...],
        arguments: dict[str, Argument],
        constants: dict[str, Number],
        warps: int,
        stages: int,
    ) -> Launch:
        x, y, z = grid
        family = "attention" if function == "combine" else "expanded_attention"
        return Launch(source(family, function), (x, y, z), arguments, constants, only(types, arguments), warps, stages)

    def expand(w: int, out: str, width: int, first_head: int, *, copies: bool) -> Launch:
        arguments: dict[str, Argument] = {
            "cache": Operand(_CACHE),
            "w": Operand(w),
            "tables": Operand(_TABLES),
            "tiles": PreparedInput("tiles"),
            "out": ScratchSpace(out),
            "turned": ScratchSpace("turned"),
            "page_size": Scalar(Dimension(_CACHE, 1)),
            "table_row": Scalar(Stride(_TABLES, 0)),
            "w_head": stride(w, 0),
            "w_row": stride(w, 1),
            "first_head": Scalar(first_head),
            "room": Scalar(keys),
        }
        constants: dict[str, Number] = {
            "LATENT": latent,
            "ROTATED": rotated,
            "ROTATED_PADDED": padded(rotated, 16),
            "WIDTH": width,
            "PADDED": padded(width, 16),
            "KEYS": tile.made,
            "DEPTH": tile.depth,
            "COPIES": copies,
        }
        return launch("expand", (group, made_tiles, 1), arguments, constants, tile.warps, tile.stages)

    def of(first_head: int) -> tuple[Launch, ...]:
        parts: dict[str, Argument] = {"partials": ScratchSpace("partials"), "logs": ScratchSpace("logs")}
        arguments: dict[str, Argument] = {
            "content": Operand(_CONTENT),
            "rotated": Operand(_ROTATED),
            "work": PreparedInput("work"),
            **{name: ScratchSpace(name) for name in ("keys", "values", "turned")},
            "out": Operand(_FEW),
            **parts,
            "c_token": stride(_CONTENT, 0),
            "c_head": stride(_CONTENT, 1),
            "r_token": stride(_ROTATED, 0),
            "r_head": stride(_ROTATED, 1),
            "first_head": Scalar(first_head),
            "room": Scalar(keys),
        }
        result: dict[str, Number] = {"TOTAL": heads, "HEADS": group, "WIDTH": values, "PADDED": padded(values, 16)}
        constants: dict[str, Number] = {
            **result,
            "CONTENT": content,
            "CONTENT_PADDED": padded(content, 16),
            "ROTATED": rotated,
            "ROTATED_PADDED": padded(rotated, 16),
            "SCALE": number(call, "scale"),
            "ROWS": tile.rows,
            "KEYS": tile.keys,
        }
        combined: dict[str, Argument] = {
            "sinks": Operand(_FEW),
            "work": PreparedInput("work"),
            "out": Operand(_FEW),
            **parts,
            "first_head": Scalar(first_head),
        }
        of_parts: dict[str, Number] = {**result, "GROUP": 1, "SINKS": False, "ROWS": COMBINED_ROWS, "ROOM": tile.rows}
        return (
            expand(_K_UP, "keys", content, first_head, copies=True),
            expand(_V_UP, "values", values, first_head, copies=False),
            launch("attend_expanded", (splits, group, 1), arguments, constants, tile.warps, tile.stages),
            launch("combine", (room, group, cdiv(tile.rows, COMBINED_ROWS)), combined, of_parts, 4, 1),
        )

    partial = room * (group * tile.rows)
    scratch = (
        Scratch("keys", keys * (group * content * element)),
        Scratch("values", keys * (group * values * element)),
        Scratch("turned", keys * (rotated * element)),
        Scratch("partials", partial * (values * 4)),
        Scratch("logs", partial * 4),
    )
    prepared = (
        Prepared(
            "tiles", "tskernels.gpu.splits:expansions", {"keys": tile.made, "expanded_from": expanded_from}, (made_tiles + 1) * EXPANSION
        ),
        Prepared(
            "work",
            "tskernels.gpu.splits:expanded_work",
            {"heads": group, "rows": tile.rows, "unit": tile.keys, "blocks": 1, "expanded_from": expanded_from},
            (splits + room + 1) * RECORD,
        ),
    )
    many = Variant(tuple(one for first_head in range(0, heads, group) for one in of(first_head)), expanded_from)
    return Plan((Variant(()), many), scratch, prepared)
