"""Normalization of rows, and turns of heads.

A token has some rows, of D elements each: a block takes a few of them. What is joined here is rounded as the ops alone round it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.functions_triton import cosine_and_sine, normalized, overlap


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
    gain = tl.load(w + column, mask=filled, other=0.0).to(tl.float32) + OFFSET
    inverse = inverse_size(wide, WIDTH, EPS)
    made = wide * inverse[:, None] * gain[None, :]
    tl.store(out + token * COUNT * WIDTH + row[:, None] * WIDTH + column[None, :], made.to(out.dtype.element_ty), mask=mask)


@triton.jit
def inverse_size(wide, WIDTH: tl.constexpr, EPS: tl.constexpr):
    """Of each row, what its elements are multiplied by."""
    return tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + EPS)


@triton.jit
def add_norm(x, residual, w, out, x_token, residual_token, WIDTH: tl.constexpr, PADDED: tl.constexpr, EPS: tl.constexpr,
             OFFSET: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """A row of a sum and, beside it, that normalized."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    filled = column < WIDTH
    gain = tl.load(w + column, mask=filled, other=0.0).to(tl.float32) + OFFSET
    before = tl.load(residual + token * residual_token + column, mask=filled, other=0.0).to(tl.float32)
    total = before + tl.load(x + token * x_token + column, mask=filled, other=0.0).to(tl.float32)
    total = total.to(out.dtype.element_ty)
    target = out + token * 2 * WIDTH + column
    tl.store(target, total, mask=filled)
    tl.store(target + WIDTH, normalized(total, gain, WIDTH, EPS), mask=filled)


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
def rope(x, positions, radians, q_norm, k_norm, out, x_token, x_row, COUNT: tl.constexpr, QUERIES: tl.constexpr, WIDTH: tl.constexpr,
         ROOM: tl.constexpr, PAIRS: tl.constexpr, PADDED: tl.constexpr, INTERLEAVED: tl.constexpr, MAGNITUDE: tl.constexpr,
         NORMALIZES: tl.constexpr, EPS: tl.constexpr, OFFSET: tl.constexpr, ROWS: tl.constexpr,
         DEPENDENT: tl.constexpr = False):  # fmt: skip
    """PAIRS turn, the elements after them stay. radians: of each pair, for one position. Where it NORMALIZES, rows are normalized before,
    the first QUERIES with one weight, the others with another."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    row, pair = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    there = row < COUNT
    angle = tl.load(positions + token).to(tl.float32) * tl.load(radians + pair, mask=pair < PAIRS, other=0.0)
    cosine, sine = cosine_and_sine(angle)
    cosine, sine = (cosine * MAGNITUDE)[None, :], (sine * MAGNITUDE)[None, :]
    first = pair * 2 if INTERLEAVED else pair
    apart = 1 if INTERLEAVED else PAIRS
    source = x + token * x_token + row * x_row
    target = out + token * COUNT * WIDTH + row[:, None] * WIDTH
    inverse = tl.zeros([ROWS], tl.float32)
    if NORMALIZES:
        whole = tl.arange(0, ROOM)
        given = tl.load(source[:, None] + whole[None, :], mask=there[:, None] & (whole < WIDTH)[None, :], other=0.0)
        inverse = inverse_size(given.to(tl.float32), WIDTH, EPS)
    turning = pair < PAIRS
    mask = there[:, None] & turning[None, :]
    is_query = row < QUERIES
    a = elements(source, first, there, turning, inverse, q_norm, k_norm, is_query, NORMALIZES, OFFSET).to(tl.float32)
    b = elements(source, first + apart, there, turning, inverse, q_norm, k_norm, is_query, NORMALIZES, OFFSET).to(tl.float32)
    tl.store(target + first[None, :], (a * cosine - b * sine).to(out.dtype.element_ty), mask=mask)
    tl.store(target + first[None, :] + apart, (b * cosine + a * sine).to(out.dtype.element_ty), mask=mask)
    for start in range(2 * PAIRS, WIDTH, PADDED):
        column = start + pair
        rest = column < WIDTH
        kept = elements(source, column, there, rest, inverse, q_norm, k_norm, is_query, NORMALIZES, OFFSET)
        tl.store(target + column[None, :], kept, mask=there[:, None] & rest[None, :])


@triton.jit
def elements(source, column, there, filled, inverse, q_norm, k_norm, is_query, NORMALIZES: tl.constexpr, OFFSET: tl.constexpr):
    """Of each row those of some columns, normalized where it NORMALIZES."""
    found = tl.load(source[:, None] + column[None, :], mask=there[:, None] & filled[None, :], other=0.0)
    if NORMALIZES:
        of_queries = tl.load(q_norm + column, mask=filled, other=0.0).to(tl.float32)
        of_keys = tl.load(k_norm + column, mask=filled, other=0.0).to(tl.float32)
        gain = tl.where(is_query[:, None], of_queries[None, :], of_keys[None, :]) + OFFSET
        return (found.to(tl.float32) * inverse[:, None] * gain).to(found.dtype)
    return found
