"""Latent attention with a key and a value for each head: `expand` makes them of the cache's rows, `attend_expanded` reads them.

Some heads are worked on at a time: HEADS from `first_head` on. What is made lies head by head, `room` keys each; records are those of
`splits.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.attention_triton import RECORD, store_result, within
from tskernels.gpu.functions_triton import LOG2_E, product, weigh

EXPANSION = tl.constexpr(4)


@triton.jit
def expand(cache, w, tables, tiles, out, turned, page_size, table_row, w_head, w_row, first_head, room,
           LATENT: tl.constexpr, ROTATED: tl.constexpr, ROTATED_PADDED: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
           KEYS: tl.constexpr, DEPTH: tl.constexpr, COPIES: tl.constexpr):  # fmt: skip
    """One tile of keys for one head: `w [H, WIDTH, LATENT]` times the latents of the cache's rows. COPIES: the rotated elements, too,
    which are all heads'."""
    head, tile = tl.program_id(0), tl.program_id(1)
    if tile >= tl.load(tiles):
        return
    record = tiles + (1 + tile) * EXPANSION
    row, column, depth = tl.arange(0, KEYS), tl.arange(0, PADDED), tl.arange(0, DEPTH)
    there = row < tl.load(record + 2)
    key = tl.load(record + 1) + row
    page = tl.load(tables + tl.load(record).to(tl.int64) * table_row + key // page_size, mask=there, other=0).to(tl.int64)
    source = cache + (page * page_size + key % page_size) * (LATENT + ROTATED)
    target = (tl.load(record + 3) + row).to(tl.int64)
    weights = w + (first_head + head).to(tl.int64) * w_head + column * w_row
    sums = tl.zeros([KEYS, PADDED], tl.float32)
    for start in range(0, LATENT, DEPTH):
        mask = within(there, start + depth, LATENT, (LATENT + DEPTH - 1) // DEPTH * DEPTH)
        latents = tl.load(source[:, None] + start + depth[None, :], mask=mask, other=0.0).to(w.dtype.element_ty)
        mask = within(column < WIDTH, start + depth, LATENT, (LATENT + DEPTH - 1) // DEPTH * DEPTH)
        part = tl.load(weights[:, None] + start + depth[None, :], mask=mask, other=0.0)
        sums = product(latents, tl.trans(part), sums)
    place = out + (head.to(tl.int64) * room + target) * WIDTH
    tl.store(place[:, None] + column[None, :], sums.to(out.dtype.element_ty), mask=within(there, column, WIDTH, PADDED))
    if COPIES:
        if head == 0:
            turn = tl.arange(0, ROTATED_PADDED)
            mask = within(there, turn, ROTATED, ROTATED_PADDED)
            rotated = tl.load(source[:, None] + LATENT + turn[None, :], mask=mask, other=0.0)
            tl.store(turned + target[:, None] * ROTATED + turn[None, :], rotated.to(turned.dtype.element_ty), mask=mask)


@triton.jit
def attended(queries, turning, position, largest, total, sums, keys, values, turned, begin, end,
             SEES_ALL: tl.constexpr, CONTENT: tl.constexpr, CONTENT_PADDED: tl.constexpr, ROTATED: tl.constexpr,
             ROTATED_PADDED: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SCALE: tl.constexpr,
             ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """The online softmax over keys from `begin` to before `end`. SEES_ALL: they are whole tiles that every row sees."""
    column, value_column, turn = tl.arange(0, CONTENT_PADDED), tl.arange(0, PADDED), tl.arange(0, ROTATED_PADDED)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < (start + KEYS if SEES_ALL else end)
        place = key.to(tl.int64)
        if SEES_ALL and CONTENT == CONTENT_PADDED and ROTATED == ROTATED_PADDED and WIDTH == PADDED:
            made = tl.load(keys + place[:, None] * CONTENT + column[None, :])
            rotated = tl.load(turned + place[:, None] * ROTATED + turn[None, :])
            value = tl.load(values + place[:, None] * WIDTH + value_column[None, :])
        else:
            mask = within(there, column, CONTENT, CONTENT_PADDED)
            made = tl.load(keys + place[:, None] * CONTENT + column[None, :], mask=mask, other=0.0)
            mask = within(there, turn, ROTATED, ROTATED_PADDED)
            rotated = tl.load(turned + place[:, None] * ROTATED + turn[None, :], mask=mask, other=0.0)
            mask = within(there, value_column, WIDTH, PADDED)
            value = tl.load(values + place[:, None] * WIDTH + value_column[None, :], mask=mask, other=0.0)
        scores = product(queries, tl.trans(made), tl.zeros([ROWS, KEYS], tl.float32))
        scores = product(turning, tl.trans(rotated), scores) * (SCALE * LOG2_E)
        if not SEES_ALL:
            scores = tl.where(there[None, :] & (key[None, :] <= position[:, None]), scores, -float("inf"))
        weights, kept, largest, total = weigh(scores, largest, total)
        sums = product(weights.to(value.dtype), value, sums * kept[:, None])
    return largest, total, sums


@triton.jit
def attend_expanded(content, rotated, work, keys, values, turned, out, partials, logs,
                    c_token, c_head, r_token, r_head, first_head, room, TOTAL: tl.constexpr, HEADS: tl.constexpr,
                    CONTENT: tl.constexpr, CONTENT_PADDED: tl.constexpr, ROTATED: tl.constexpr, ROTATED_PADDED: tl.constexpr,
                    WIDTH: tl.constexpr, PADDED: tl.constexpr, SCALE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """One split of one tile of tokens, for one head. Only the newest keys are not seen by all of a tile's tokens."""
    index, head = tl.program_id(0), tl.program_id(1)
    if index >= tl.load(work):
        return
    record = work + (1 + index) * RECORD
    row, column, turn = tl.arange(0, ROWS), tl.arange(0, CONTENT_PADDED), tl.arange(0, ROTATED_PADDED)
    inside = row < tl.load(record + 3)
    token = (tl.load(record + 1) + tl.load(record + 2) + row).to(tl.int64)
    first = token * c_token + (first_head + head) * c_head
    queries = tl.load(content + first[:, None] + column[None, :], mask=within(inside, column, CONTENT, CONTENT_PADDED), other=0.0)
    first = token * r_token + (first_head + head) * r_head
    turning = tl.load(rotated + first[:, None] + turn[None, :], mask=within(inside, turn, ROTATED, ROTATED_PADDED), other=0.0)
    oldest = tl.load(record + 4) + tl.load(record + 2)
    begin, end = tl.load(record + 5), tl.load(record + 6)
    place = tl.load(record).to(tl.int64)
    keys += (head.to(tl.int64) * room + place) * CONTENT
    values += (head.to(tl.int64) * room + place) * WIDTH
    turned += place * ROTATED
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED], tl.float32)
    seen = tl.maximum(tl.minimum(end, oldest + 1) - begin, 0) // KEYS * KEYS + begin
    largest, total, sums = attended(queries, turning, oldest + row, largest, total, sums, keys, values, turned, begin, seen, True,
                                    CONTENT, CONTENT_PADDED, ROTATED, ROTATED_PADDED, WIDTH, PADDED, SCALE, ROWS, KEYS)  # fmt: skip
    largest, total, sums = attended(queries, turning, oldest + row, largest, total, sums, keys, values, turned, seen, end, False,
                                    CONTENT, CONTENT_PADDED, ROTATED, ROTATED_PADDED, WIDTH, PADDED, SCALE, ROWS, KEYS)  # fmt: skip
    out += first_head * WIDTH
    store_result(sums, largest, total, record, head, out, partials, logs, row, tl.arange(0, PADDED), inside, TOTAL, HEADS, 1, WIDTH,
                 PADDED, ROWS)  # fmt: skip
