"""Plans of attention over paged caches in Triton: of keys and values by heads, and of latent rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tskernels.cache_layouts import FP8_CACHE
from tskernels.cost import attention_bound, latent_attention_bound, sink_attention_bound
from tskernels.gpu.launch import Argument, Operand, Plan, Scalar
from tskernels.gpu.sizes import Dimension, cdiv, common_divisor, smaller
from tskernels.gpu.split_attention import Form, SplitAttention, Tile, Tiles, paged, split_plan
from tskernels.gpu.triton_entry import cache_kernel, is_hopper, is_nvidia, number, padded, size, stride
from tskernels.registry import Call
from tskernels.target import Target

_BUFFERS: Final = 2
"""Tiles of latents that shared memory has room for beside the queries."""
_PART: Final = 16
"""Keys that are looked up at once where a page has no whole tile."""


def _tiles(call: Call, target: Target) -> Tiles:
    width = padded(size(call, 0, 3))
    if call.operands[0].dtype == "f32":
        one = Tile(16, 32 if width <= 128 else 16, 4, 1)
        return Tiles(one, one, 1, 2, 2)
    stages, is_fp8 = 2 if is_nvidia(target) else 1, call.operands[1].layout == FP8_CACHE
    keys = 128 if is_hopper(target) and not is_fp8 else 64  # what is widened of fp8 lies in registers
    narrow = Tile(16, keys if width <= 128 else 32, 4, stages)
    keys = 64 if number(call, "window") else keys  # of a window most of more would be masked
    wide = Tile(128, keys, 8, stages) if width <= 128 else Tile(64, 32, 8, stages)
    if not is_nvidia(target):  # accumulators lie in registers
        wide = Tile(64, 64 if width <= 128 else 32, 4, 1)
    # To widen takes instructions: the more warps, the better, where they have few registers.
    return Tiles(narrow, wide, 32, 4 if is_hopper(target) and is_fp8 and width <= 64 else 2, 2)


def _latent_tiles(call: Call, target: Target) -> Tiles:
    if call.operands[0].dtype == "f32":
        one = Tile(16, 16, 8, 1)
        return Tiles(one, one, 1, 1, 1)
    stages = 2 if is_nvidia(target) else 1
    if call.operands[2].layout == FP8_CACHE:  # what is widened lies in registers, beside the sums
        narrow, wide = (Tile(16, 32, 8, 2), Tile(32, 32, 8, 2)) if is_nvidia(target) else (Tile(16, 32, 4, 1), Tile(32, 16, 4, 1))
        return Tiles(narrow, wide, 1, 1, 1)
    if _is_ahead(call, target):  # one row tile of memory's pace has room for 64 rows
        one = Tile(64, 64, 8, _BUFFERS)
        return Tiles(one, one, 1, 1, 1)
    wide = Tile(64, 64, 8, 3) if is_hopper(target) else Tile(64, 32, 8, stages) if is_nvidia(target) else Tile(32, 32, 4, 1)
    return Tiles(Tile(16, 32, 4, stages), wide, 1, 2 if is_nvidia(target) else 1, 1)


def _is_ahead(call: Call, target: Target) -> bool:
    """Whether a tile is loaded while another is computed with: tiles of 64 rows and keys, all of which rows see but for the newest."""
    is_plain = not number(call, "window") and call.operands[2].layout != FP8_CACHE
    return is_hopper(target) and is_plain and call.operands[0].dtype != "f32"


def _latent_forms(call: Call, target: Target) -> tuple[Form, ...]:
    """By whether pages have whole tiles, parts of them, or neither."""
    if not _is_ahead(call, target):
        return (Form({"TOGETHER": 1, "BUFFERS": 0}),)
    keys = _latent_tiles(call, target).wide.keys
    common = common_divisor(Dimension(2, 1), keys)
    cuts = cdiv(keys, common)  # into so many parts of tiles and pages
    where = {
        keys: common // keys,
        _PART: smaller(1, common // _PART) * smaller(1, cuts // 2),
        1: smaller(1, cuts // (keys // _PART * 2)),
    }
    return tuple(Form({"TOGETHER": together, "BUFFERS": _BUFFERS}, runs) for together, runs in where.items())


@cache_kernel("ts::attention", 1, cost=attention_bound)
def attention(call: Call, target: Target) -> Plan:
    return paged(call, _tiles(call, target))


@cache_kernel("ts::sink_attention", 1, cost=sink_attention_bound)
def sink_attention(call: Call, target: Target) -> Plan:
    return paged(call, _tiles(call, target), has_sinks=True)


@cache_kernel("ts::latent_attention", 2, cost=latent_attention_bound)
def latent_attention(call: Call, target: Target) -> Plan:
    heads, latent, rotated = size(call, 0, 1), size(call, 0, 2), size(call, 1, 2)
    constants = {
        "HEADS": heads,
        "LATENT": latent,
        "LATENT_PADDED": padded(latent, 16),
        "ROTATED": rotated,
        "ROTATED_PADDED": padded(rotated, 16),
        "SCALE": number(call, "scale"),
        "WINDOW": number(call, "window"),
    }
    arguments: dict[str, Argument] = {"q": Operand(0), "rotated": Operand(1), "cache": Operand(2)}
    strides = {
        "q_token": stride(0, 0),
        "q_head": stride(0, 1),
        "r_token": stride(1, 0),
        "r_head": stride(1, 1),
        "page_size": Scalar(Dimension(2, 1)),
    }
    tiles = _latent_tiles(call, target)
    attention = SplitAttention("attend_latent", arguments, strides, constants, tiles, 2, 3, 1, heads, latent)
    return split_plan(call, replace(attention, expanded_from=int(number(call, "expanded_from", 0)), forms=_latent_forms(call, target)))
