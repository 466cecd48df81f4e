"""What choosing tokens takes: keys, which order numbers and then indices (`rows.py` of the references), and sums over rows."""

from __future__ import annotations

import triton
import triton.language as tl

LOW = tl.constexpr(0xFFFFFFFF)
LEAST = tl.constexpr(-(1 << 63))


@triton.jit
def block_keys(x, keys, shard, x_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key of a block of a row: keys [rows, blocks]."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    number = tl.load(x + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
    bits = number.to(tl.int32, bitcast=True)
    bits = tl.where(number == 0, 0, tl.where(number != number, 0x7FC00000, bits)).to(tl.int64)  # one zero, one NaN
    ordered = tl.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    key = (ordered << 32) + (LOW - (shard.to(tl.int64) * WIDTH + column))
    tl.store(keys + row * tl.num_programs(1) + block, tl.max(tl.where(mask, key, LEAST), 0))


@triton.jit
def largest_key(keys, out, BLOCKS: tl.constexpr, PADDED: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    tl.store(out + row, tl.max(tl.load(keys + row * BLOCKS + block, mask=block < BLOCKS, other=LEAST), 0))


@triton.jit
def of_keys(keys, out, rows, keys_row, NUMBERS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Of each key its number, or its index, -1 where the number is not finite."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < rows * WIDTH
    key = tl.load(keys + (place // WIDTH).to(tl.int64) * keys_row + place % WIDTH, mask=mask, other=0)
    ordered = key >> 32
    number = tl.where(ordered < 0, -(ordered + 1) - (1 << 31), ordered).to(tl.int32).to(tl.float32, bitcast=True)
    if NUMBERS:
        tl.store(out + place, number, mask=mask)
    else:
        tl.store(out + place, tl.where(tl.abs(number) < float("inf"), LOW - (key & LOW), -1).to(tl.int32), mask=mask)


@triton.jit
def of_rows(x, out, x_token, x_row, COUNT: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of a row, or its largest number, NaN where it has one."""
    token, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source = x + token * x_token + row * x_row
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    broken = tl.zeros([BLOCK], tl.int32)
    for start in range(0, WIDTH, BLOCK):
        mask = start + column < WIDTH
        wide = tl.load(source + start + column, mask=mask, other=0.0).to(tl.float32)
        if SUM:
            total += wide
        else:
            largest = tl.maximum(largest, tl.where(mask, wide, -float("inf")))
            broken |= (wide != wide).to(tl.int32)
    if SUM:
        tl.store(out + token * COUNT + row, tl.sum(total, 0))
    else:
        tl.store(out + token * COUNT + row, tl.where(tl.max(broken, 0) > 0, float("nan"), tl.max(largest, 0)))
