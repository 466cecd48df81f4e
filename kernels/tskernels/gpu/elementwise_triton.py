"""Functions of single elements, and moves of rows. A block takes some elements of one token; results lie without gaps."""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.functions_triton import activated, capped, e4m3_code, overlap


@triton.jit
def place(column, token, x_token, x_row, WIDTH: tl.constexpr, ROW: tl.constexpr):
    """Of an element of a token, whose rows of ROW elements may be apart."""
    if ROW == WIDTH:
        return token * x_token + column
    return token * x_token + column // ROW * x_row + column % ROW


@triton.jit
def unary(x, out, x_token, x_row, FUNCTION: tl.constexpr, FACTOR: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
          BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """FUNCTION: an activation's name, `scale` or `softcap`."""
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    wide = tl.load(x + place(column, token, x_token, x_row, WIDTH, ROW), mask=mask, other=0.0).to(tl.float32)
    if FUNCTION == "scale":
        made = wide * FACTOR
    elif FUNCTION == "softcap":
        made = capped(wide, FACTOR)
    else:
        made = activated(wide, FUNCTION)
    tl.store(out + token * WIDTH + column, made.to(out.dtype.element_ty), mask=mask)


@triton.jit
def binary(x, y, out, x_token, x_row, y_token, y_row, FUNCTION: tl.constexpr, WIDTH: tl.constexpr, ROW: tl.constexpr,
           BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """FUNCTION: `add` or `mul`; `scale_rows`, `exp_minus` or `divide_rows`, where y has a number for each row of x."""
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    a = tl.load(x + place(column, token, x_token, x_row, WIDTH, ROW), mask=mask, other=0.0).to(tl.float32)
    if FUNCTION == "add" or FUNCTION == "mul":
        b = tl.load(y + place(column, token, y_token, y_row, WIDTH, ROW), mask=mask, other=1.0).to(tl.float32)
    else:
        b = tl.load(y + token * y_token + column // ROW * y_row, mask=mask, other=1.0).to(tl.float32)
    if FUNCTION == "add":
        made = a + b
    elif FUNCTION == "exp_minus":
        made = tl.exp(a - b)
    elif FUNCTION == "divide_rows":
        made = tl.div_rn(a, b)
    else:
        made = a * b
    tl.store(out + token * WIDTH + column, made.to(out.dtype.element_ty), mask=mask)


@triton.jit
def decay(x, rate, bias, out, x_token, x_row, WIDTH: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    wide = tl.load(x + place(column, token, x_token, x_row, WIDTH, ROW), mask=mask, other=0.0).to(tl.float32)
    wide += tl.load(bias + column, mask=mask, other=0.0)
    # log(1 + exp(x)) without overflow, and without losing what is small: the series of log(1 + t)
    t = tl.exp(-tl.abs(wide))
    small = t * (1.0 + t * (-0.5 + t * (0.3333333333 + t * (-0.25 + t * 0.2))))
    softplus = tl.maximum(wide, 0.0) + tl.where(t < 0.02, small, tl.log(1.0 + t))
    tl.store(out + token * WIDTH + column, tl.exp(-tl.exp(tl.load(rate + column, mask=mask, other=0.0)) * softplus), mask=mask)


@triton.jit
def embedding(ids, table, out, shard, COUNT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):
    """COUNT rows are here, from `shard * COUNT` on; ids of others give zeros."""
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token).to(tl.int64) - shard * COUNT
    mask = column < WIDTH
    found = tl.load(table + row * WIDTH + column, mask=mask & (row >= 0) & (row < COUNT), other=0.0)
    tl.store(out + token * WIDTH + column, found, mask=mask)


@triton.jit
def take_rows(x, index, out, x_token, x_row, WIDTH: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < WIDTH
    row = tl.load(index + token).to(tl.int64)
    found = tl.load(x + place(column, row, x_token, x_row, WIDTH, ROW), mask=mask, other=0.0)
    tl.store(out + token * WIDTH + column, found, mask=mask)


@triton.jit
def append_some(cache, places, elements, there):
    if cache.dtype.element_ty == tl.float8e4nv:
        tl.store(cache.to(tl.pointer_type(tl.uint8)) + places, e4m3_code(elements), mask=there)
    else:
        tl.store(cache + places, elements, mask=there)


@triton.jit
def append(cache, x, y, slots, x_token, x_row, y_token, y_row, X_WIDTH: tl.constexpr, X_ROW: tl.constexpr, Y_WIDTH: tl.constexpr,
           Y_ROW: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """x and y side by side in a token's row of a cache, whose pages are whole numbers of rows; its type is theirs, or e4m3."""
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(slots + token).to(tl.int64) * (X_WIDTH + Y_WIDTH) + column
    there = column < X_WIDTH
    append_some(cache, row, tl.load(x + place(column, token, x_token, x_row, X_WIDTH, X_ROW), mask=there), there)
    there = column < Y_WIDTH
    append_some(cache, row + X_WIDTH, tl.load(y + place(column, token, y_token, y_row, Y_WIDTH, Y_ROW), mask=there), there)
