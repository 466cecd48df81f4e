"""Normalization of rows, and turns of heads.

A token has some rows, of D elements each: a block takes a few of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.functions_triton import cosine_and_sine, overlap


@triton.jit
def rms_norm(x, w, out, x_token, x_row, COUNT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
             EPS: tl.constexpr, OFFSET: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """COUNT rows a token."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    filled = column < WIDTH
    mask = (row < COUNT)[:, None] & filled[None, :]
    wide = tl.load(x + token * x_token + row[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + EPS)
    gain = tl.load(w + column, mask=filled, other=0.0).to(tl.float32) + OFFSET
    made = wide * inverse[:, None] * gain[None, :]
    tl.store(out + token * COUNT * WIDTH + row[:, None] * WIDTH + column[None, :], made.to(out.dtype.element_ty), mask=mask)


@triton.jit
def row_squares(x, out, x_token, x_row, COUNT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
                DEPENDENT: tl.constexpr = False):  # fmt: skip
    """Of all rows of a token together."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    sums = tl.zeros([ROWS, PADDED], tl.float32)
    for first in range(0, COUNT, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < COUNT)[:, None] & (column < WIDTH)[None, :]
        wide = tl.load(x + token * x_token + row[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
        sums += wide * wide
    tl.store(out + token, tl.sum(tl.sum(sums, 1), 0))


@triton.jit
def rms_scale(x, squares, w, out, x_token, x_row, COUNT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
              EPS: tl.constexpr, OFFSET: tl.constexpr, WHOLE: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """WHOLE: elements that the squares are of."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    mask = (row < COUNT)[:, None] & (column < WIDTH)[None, :]
    wide = tl.load(x + token * x_token + row[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.load(squares + token).to(tl.float32) / WHOLE + EPS)
    place = row[:, None] * WIDTH + column[None, :]
    gain = tl.load(w + place, mask=mask, other=0.0).to(tl.float32) + OFFSET
    tl.store(out + token * COUNT * WIDTH + place, (wide * inverse * gain).to(out.dtype.element_ty), mask=mask)


@triton.jit
def rope(x, positions, radians, out, x_token, x_row, COUNT: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr,
         PADDED: tl.constexpr, INTERLEAVED: tl.constexpr, MAGNITUDE: tl.constexpr, ROWS: tl.constexpr,
         DEPENDENT: tl.constexpr = False):  # fmt: skip
    """PAIRS turn, the elements after them stay. radians: of each pair, for one position."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    row, pair = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    there = row < COUNT
    angle = tl.load(positions + token).to(tl.float32) * tl.load(radians + pair, mask=pair < PAIRS, other=0.0)
    cosine, sine = cosine_and_sine(angle)
    cosine, sine = (cosine * MAGNITUDE)[None, :], (sine * MAGNITUDE)[None, :]
    mask = there[:, None] & (pair < PAIRS)[None, :]
    first = pair * 2 if INTERLEAVED else pair
    apart = 1 if INTERLEAVED else PAIRS
    source = x + token * x_token + row[:, None] * x_row
    target = out + token * COUNT * WIDTH + row[:, None] * WIDTH
    a = tl.load(source + first[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + first[None, :] + apart, mask=mask, other=0.0).to(tl.float32)
    tl.store(target + first[None, :], (a * cosine - b * sine).to(out.dtype.element_ty), mask=mask)
    tl.store(target + first[None, :] + apart, (b * cosine + a * sine).to(out.dtype.element_ty), mask=mask)
    for start in range(2 * PAIRS, WIDTH, PADDED):
        column = start + pair
        rest = there[:, None] & (column < WIDTH)[None, :]
        tl.store(target + column[None, :], tl.load(source + column[None, :], mask=rest, other=0.0), mask=rest)
