"""Attention over paged caches, split over the keys, and the combination of the splits.

A row is a token and one of the G heads that share a key. Scores are in powers of two. What a record says is in `splits.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu import splits
from tskernels.gpu.functions_triton import LOG2_E, capped, overlap, product, weigh, weigh_apart

RECORD = tl.constexpr(splits.RECORD)
PART = tl.constexpr(splits.PART)
"""Keys of a page, or of a part of it, that are looked up at once."""


@triton.jit
def split_of(work, index, WIDE: tl.constexpr):
    """Where a split's record is; the work begins with how many narrow and wide ones there are."""
    if WIDE:
        index += tl.load(work)
    return work + (1 + index) * RECORD


@triton.jit
def within(rows, column, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The elements that there are, of some rows."""
    if WIDTH == PADDED:
        return rows[:, None]
    else:
        return rows[:, None] & (column < WIDTH)[None, :]


@triton.jit
def store_result(sums, largest, total, record, head, out, partials, logs, row, column, inside, TOTAL: tl.constexpr,
                 HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROOM: tl.constexpr):  # fmt: skip
    """The whole, or a split's part of it with the logarithm of its weights' sum. TOTAL: heads of the result, of which HEADS are here."""
    some = tl.where(total > 0, total, 1.0)
    sums = sums / some[:, None]
    partial = tl.load(record + 7)
    mask = within(inside, column, WIDTH, PADDED)
    if partial < 0:
        member = tl.load(record + 2) + row
        token = (tl.load(record + 1) + member // GROUP).to(tl.int64)
        place = (token * TOTAL + head) * GROUP + member % GROUP
        tl.store(out + place[:, None] * WIDTH + column[None, :], sums.to(out.dtype.element_ty), mask=mask)
    else:
        place = (partial.to(tl.int64) * HEADS + head) * ROOM + row
        tl.store(partials + place[:, None] * WIDTH + column[None, :], sums, mask=mask)
        tl.store(logs + place, tl.where(total > 0, largest + tl.log2(some), -float("inf")), mask=inside)


@triton.jit
def places(table, start, end, page_size, KEYS: tl.constexpr, IN_PARTS: tl.constexpr):
    """Rows of the cache of a tile's keys. IN_PARTS: pages and tiles begin with whole parts."""
    if IN_PARTS:
        part = start + tl.arange(0, KEYS // PART) * PART
        page = tl.load(table + part // page_size, mask=part < end, other=0)
        first = page * page_size + part % page_size
        return tl.reshape(first[:, None] + tl.arange(0, PART)[None, :], [KEYS])
    else:
        key = start + tl.arange(0, KEYS)
        page = tl.load(table + key // page_size, mask=key < end, other=0)
        return page * page_size + key % page_size


@triton.jit
def first_seen(begin, position, WINDOW: tl.constexpr):
    """Of some rows: keys before it are seen by none, and may be another sequence's by now. Splits begin with whole parts of pages."""
    if WINDOW > 0:
        return tl.maximum(begin, tl.min(position, 0) - WINDOW + 1)
    else:
        return begin


@triton.jit
def attended(queries, position, largest, total, sums, cache, table, page_size, head, begin, end, SEES_ALL: tl.constexpr,
             HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SCALE: tl.constexpr, WINDOW: tl.constexpr,
             SOFTCAP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """The online softmax over keys from `begin` to before `end`. SEES_ALL: they are whole tiles that every row sees."""
    column, first = tl.arange(0, PADDED), first_seen(begin, position, WINDOW)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < (start + KEYS if SEES_ALL else end)
        if WINDOW > 0:
            there &= key >= first
        if KEYS >= 64 or ROWS < 64:  # of few keys for many rows it saves nothing
            if page_size % PART == 0:
                row = places(table, start, end, page_size, KEYS, True)
            else:
                row = places(table, start, end, page_size, KEYS, False)
        else:
            row = places(table, start, end, page_size, KEYS, False)
        place = row.to(tl.int64) * (2 * HEADS * WIDTH) + head * WIDTH
        if SEES_ALL and WIDTH == PADDED:
            keys = tl.load(cache + place[:, None] + column[None, :])
        else:
            mask = within(there, column, WIDTH, PADDED)
            keys = tl.load(cache + place[:, None] + column[None, :], mask=mask, other=0.0)
        scores = product(queries, tl.trans(keys.to(queries.dtype)), tl.zeros([ROWS, KEYS], tl.float32))
        if SOFTCAP == 0:
            scores = scores * (SCALE * LOG2_E)
        else:
            scores = capped(scores * SCALE, SOFTCAP) * LOG2_E
        if not SEES_ALL:
            seen = there[None, :] & (key[None, :] <= position[:, None])
            if WINDOW > 0:
                seen &= position[:, None] - key[None, :] < WINDOW
            scores = tl.where(seen, scores, -float("inf"))
        weights, kept, largest, total = weigh(scores, largest, total)
        if SEES_ALL and WIDTH == PADDED:
            values = tl.load(cache + place[:, None] + HEADS * WIDTH + column[None, :])
        else:
            mask = within(there, column, WIDTH, PADDED)
            values = tl.load(cache + place[:, None] + HEADS * WIDTH + column[None, :], mask=mask, other=0.0)
        sums = product(weights.to(queries.dtype), values.to(queries.dtype), sums * kept[:, None])
    return largest, total, sums


@triton.jit
def facts_of(record):
    """Of a split, but for where its result goes."""
    sequence, token, first_row, rows = tl.load(record), tl.load(record + 1), tl.load(record + 2), tl.load(record + 3)
    return sequence, token, first_row, rows, tl.load(record + 4), tl.load(record + 5), tl.load(record + 6)


@triton.jit
def attend_split(q, cache, sinks, tables, record, out, partials, logs, sequence, token, first_row, rows, before, begin, end, head,
                 q_token, q_head, q_member, page_size, table_row,
                 HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                 SCALE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
                 ROWS: tl.constexpr, KEYS: tl.constexpr, ROOM: tl.constexpr):  # fmt: skip
    """One split of one tile, for one head of keys."""
    row, column = tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = row < rows
    member = first_row + row
    group = member % GROUP
    first = (token + member // GROUP).to(tl.int64) * q_token + head * q_head + group * q_member
    queries = tl.load(q + first[:, None] + column[None, :], mask=within(inside, column, WIDTH, PADDED), other=0.0)
    position = before + member // GROUP
    table = tables + sequence.to(tl.int64) * table_row
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED], tl.float32)
    seen = begin
    if ROWS >= 64 and WINDOW == 0:
        oldest = before + first_row // GROUP
        seen = tl.maximum(tl.minimum(end, oldest + 1) - begin, 0) // KEYS * KEYS + begin
        largest, total, sums = attended(queries, position, largest, total, sums, cache, table, page_size, head, begin, seen, True,
                                        HEADS, WIDTH, PADDED, SCALE, WINDOW, SOFTCAP, ROWS, KEYS)  # fmt: skip
    largest, total, sums = attended(queries, position, largest, total, sums, cache, table, page_size, head, seen, end, False,
                                    HEADS, WIDTH, PADDED, SCALE, WINDOW, SOFTCAP, ROWS, KEYS)  # fmt: skip
    if SINKS:
        if tl.load(record + 7) < 0:
            sink = tl.load(sinks + head * GROUP + group).to(tl.float32) * LOG2_E
            base = tl.maximum(largest, sink)
            kept = tl.exp2(largest - base)
            total = total * kept + tl.exp2(sink - base)
            sums = sums * kept[:, None]
            largest = base
    store_result(sums, largest, total, record, head, out, partials, logs, row, column, inside, HEADS, HEADS, GROUP, WIDTH, PADDED, ROOM)


@triton.jit
def attend(q, cache, sinks, tables, work, out, partials, logs, q_token, q_head, q_member, page_size, table_row,
           WIDE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
           SCALE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
           ROWS: tl.constexpr, KEYS: tl.constexpr, ROOM: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """Splits of tiles, for one head of keys: a block has one of wide tiles, of narrow ones one after the other. q, sinks, out: as the op
    has them; cache [pages, page_size, 2, K, E], of their type or e4m3. The first record is read while launches before still run."""
    index, head = tl.program_id(0), tl.program_id(1)
    count, record = tl.load(work + WIDE), split_of(work, index, WIDE)  # past the last there is memory
    sequence, token, first_row, rows, before, begin, end = facts_of(record)
    overlap(DEPENDENT)
    if WIDE:
        if index < count:
            attend_split(q, cache, sinks, tables, record, out, partials, logs, sequence, token, first_row, rows, before, begin, end, head,
                         q_token, q_head, q_member, page_size, table_row,
                         HEADS, GROUP, WIDTH, PADDED, SCALE, WINDOW, SOFTCAP, SINKS, ROWS, KEYS, ROOM)  # fmt: skip
    else:
        while index < count:
            attend_split(q, cache, sinks, tables, record, out, partials, logs, sequence, token, first_row, rows, before, begin, end, head,
                         q_token, q_head, q_member, page_size, table_row,
                         HEADS, GROUP, WIDTH, PADDED, SCALE, WINDOW, SOFTCAP, SINKS, ROWS, KEYS, ROOM)  # fmt: skip
            index += tl.num_programs(0)
            record = split_of(work, index, WIDE)
            sequence, token, first_row, rows, before, begin, end = facts_of(record)


@triton.jit
def looked_up(table, key, end, page_size):
    """The pages of keys, and where in these they are."""
    number = key // page_size
    return tl.load(table + number, mask=key < end, other=0), key - number * page_size


@triton.jit
def first_rows(page, inside, page_size, KEYS: tl.constexpr, TOGETHER: tl.constexpr, WIDTH: tl.constexpr):
    """Of a tile's keys, whose every TOGETHER lie side by side: where they begin, in elements, from an address that all have in common."""
    first = page.to(tl.int64) * page_size + inside
    if TOGETHER == KEYS:
        return first * WIDTH, tl.arange(0, KEYS).to(tl.int64) * WIDTH
    elif TOGETHER == 1:
        return 0, first * WIDTH
    else:
        return 0, tl.reshape(first[:, None] + tl.arange(0, TOGETHER)[None, :], [KEYS]) * WIDTH


@triton.jit
def only_seen(scores, key, position, end, WINDOW: tl.constexpr):
    seen = (key < end)[None, :] & (key[None, :] <= position[:, None])
    if WINDOW > 0:
        seen &= position[:, None] - key[None, :] < WINDOW
    return tl.where(seen, scores, -float("inf"))


@triton.jit
def attended_latents(queries, turning, position, largest, total, sums, cache, table, page_size, begin, end,
                     LATENT: tl.constexpr, LATENT_PADDED: tl.constexpr, ROTATED: tl.constexpr, ROTATED_PADDED: tl.constexpr,
                     SCALE: tl.constexpr, WINDOW: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """`attended` for rows that are key and value."""
    column, turned, first = tl.arange(0, LATENT_PADDED), tl.arange(0, ROTATED_PADDED), first_seen(begin, position, WINDOW)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < end
        if WINDOW > 0:
            there &= key >= first
        page = tl.load(table + key // page_size, mask=there, other=0).to(tl.int64)
        place = (page * page_size + key % page_size) * (LATENT + ROTATED)
        latent = tl.load(cache + place[:, None] + column[None, :], mask=within(there, column, LATENT, LATENT_PADDED), other=0.0)
        keys = tl.load(cache + place[:, None] + LATENT + turned[None, :], mask=within(there, turned, ROTATED, ROTATED_PADDED), other=0.0)
        latent, keys = latent.to(queries.dtype), keys.to(queries.dtype)
        scores = product(queries, tl.trans(latent), tl.zeros([ROWS, KEYS], tl.float32))
        scores = product(turning, tl.trans(keys), scores) * (SCALE * LOG2_E)
        weights, kept, largest, total = weigh(only_seen(scores, key, position, end, WINDOW), largest, total)
        sums = product(weights.to(latent.dtype), latent, sums * kept[:, None])
    return largest, total, sums


@triton.jit
def attended_ahead(queries, turning, position, largest, totals, sums, cache, table, page_size, begin, end, SEES_ALL: tl.constexpr,
                   LATENT: tl.constexpr, LATENT_PADDED: tl.constexpr, ROTATED: tl.constexpr, ROTATED_PADDED: tl.constexpr,
                   SCALE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, TOGETHER: tl.constexpr,
                   BUFFERS: tl.constexpr):  # fmt: skip
    """`attended_latents` with the next tile of keys loaded while this one is computed with. TOGETHER: keys that lie side by side, and begin
    with a page or a part of it; BUFFERS: tiles in shared memory.

    Both branches are always taken, which Triton (3.6 to 3.8) does not see. It asks for a tile after what uses the one before, unless
    that is in a branch. And it has all warps take other rows in a product that leads to another one in the same block of code, so that
    of 8 warps half would do what the others do, with 64 rows: scores in a branch of their own, of two products that are scaled apart,
    are shared out by keys. Pages are looked up an iteration ahead, so that no address waits for them; weights are added up by columns, in
    totals [ROWS, KEYS], so that warps wait for each other once less."""
    column, turned = tl.arange(0, LATENT_PADDED), tl.arange(0, ROTATED_PADDED)
    if TOGETHER == KEYS:
        number, inside = begin // page_size, begin % page_size
        page = tl.load(table + number, mask=begin < end, other=0)
    else:
        part = tl.arange(0, KEYS // TOGETHER) * TOGETHER
        page, inside = looked_up(table, begin + part, end, page_size)
    for start in tl.range(begin, end, KEYS, num_stages=BUFFERS):
        key = start + tl.arange(0, KEYS)
        first, row = first_rows(page, inside, page_size, KEYS, TOGETHER, LATENT + ROTATED)
        if TOGETHER == KEYS:  # without a division, which takes long
            inside += KEYS
            number += (inside == page_size).to(tl.int32)
            inside = tl.where(inside == page_size, 0, inside)
            page = tl.load(table + number, mask=start + KEYS < end, other=0)
        else:
            page, inside = looked_up(table, start + KEYS + part, end, page_size)
        at = cache + first
        if SEES_ALL and LATENT == LATENT_PADDED and ROTATED == ROTATED_PADDED:
            latent = tl.load(at + (row[:, None] + column[None, :]))
            keys = tl.load(at + (row[:, None] + (LATENT + turned)[None, :]))
        else:
            mask = within(key < end, column, LATENT, LATENT_PADDED)
            latent = tl.load(at + (row[:, None] + column[None, :]), mask=mask, other=0.0)
            mask = within(key < end, turned, ROTATED, ROTATED_PADDED)
            keys = tl.load(at + (row[:, None] + (LATENT + turned)[None, :]), mask=mask, other=0.0)
        latent_columns, key_columns = tl.trans(latent), tl.trans(keys)
        scores = tl.zeros([ROWS, KEYS], tl.float32)
        if start < end:
            if start >= begin:
                of_latent, of_rotated = product(queries, latent_columns, scores), product(turning, key_columns, scores)
                scores = of_latent * (SCALE * LOG2_E) + of_rotated * (SCALE * LOG2_E)
            if not SEES_ALL:
                scores = only_seen(scores, key, position, end, 0)
            weights, kept, largest, totals = weigh_apart(scores, largest, totals)
            sums = product(weights.to(latent.dtype), latent, sums * kept[:, None])
    return largest, totals, sums


@triton.jit
def attend_latent(q, rotated, cache, tables, work, out, partials, logs, q_token, q_head, r_token, r_head, page_size, table_row,
                  WIDE: tl.constexpr, HEADS: tl.constexpr, LATENT: tl.constexpr, LATENT_PADDED: tl.constexpr, ROTATED: tl.constexpr,
                  ROTATED_PADDED: tl.constexpr, SCALE: tl.constexpr, WINDOW: tl.constexpr, TOGETHER: tl.constexpr, BUFFERS: tl.constexpr,
                  ROWS: tl.constexpr, KEYS: tl.constexpr, ROOM: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """One split of one tile: a cache row [C + R] is every head's key, its first C their value, which is read once for both. BUFFERS, where
    not 0: the next tile is loaded ahead (`attended_ahead`), where every row sees it; what is left comes by few keys."""
    overlap(DEPENDENT)
    index = tl.program_id(0)
    if index >= tl.load(work + WIDE):
        return
    record = split_of(work, index, WIDE)
    row, column, turned = tl.arange(0, ROWS), tl.arange(0, LATENT_PADDED), tl.arange(0, ROTATED_PADDED)
    inside = row < tl.load(record + 3)
    member = tl.load(record + 2) + row
    token, head = (tl.load(record + 1) + member // HEADS).to(tl.int64), member % HEADS
    first = token * q_token + head * q_head
    queries = tl.load(q + first[:, None] + column[None, :], mask=within(inside, column, LATENT, LATENT_PADDED), other=0.0)
    first = token * r_token + head * r_head
    turning = tl.load(rotated + first[:, None] + turned[None, :], mask=within(inside, turned, ROTATED, ROTATED_PADDED), other=0.0)
    begin, end = tl.load(record + 5), tl.load(record + 6)
    table = tables + tl.load(record).to(tl.int64) * table_row
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, LATENT_PADDED], tl.float32)
    if BUFFERS:
        seen, totals = begin, tl.zeros([ROWS, KEYS], tl.float32)
        if TOGETHER > 1:
            oldest = tl.load(record + 4) + tl.load(record + 2) // HEADS
            seen = tl.maximum(tl.minimum(end, oldest + 1) - begin, 0) // KEYS * KEYS + begin
            largest, totals, sums = attended_ahead(queries, turning, row, largest, totals, sums, cache, table, page_size, begin, seen, True,
                                                   LATENT, LATENT_PADDED, ROTATED, ROTATED_PADDED, SCALE, ROWS, KEYS, TOGETHER,
                                                   BUFFERS)  # fmt: skip
        totals = tl.where(tl.arange(0, PART)[None, :] == 0, tl.sum(totals, 1)[:, None], 0.0)
        position = tl.load(record + 4) + (tl.load(record + 2) + row) // HEADS
        largest, totals, sums = attended_ahead(queries, turning, position, largest, totals, sums, cache, table, page_size, seen, end, False,
                                               LATENT, LATENT_PADDED, ROTATED, ROTATED_PADDED, SCALE, ROWS, PART,
                                               PART if TOGETHER > 1 else 1, BUFFERS)  # fmt: skip
        total = tl.sum(totals, 1)
    else:
        position = tl.load(record + 4) + member // HEADS
        largest, total, sums = attended_latents(queries, turning, position, largest, total, sums, cache, table, page_size, begin, end,
                                                LATENT, LATENT_PADDED, ROTATED, ROTATED_PADDED, SCALE, WINDOW, ROWS, KEYS)  # fmt: skip
    store_result(sums, largest, total, record, 0, out, partials, logs, row, column, inside, 1, 1, HEADS, LATENT, LATENT_PADDED, ROOM)


@triton.jit
def combine(sinks, work, out, partials, logs, first_head, TOTAL: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
            WIDTH: tl.constexpr, PADDED: tl.constexpr, SINKS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
            ROOM: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """Some rows of a tile whose keys were split, for one of HEADS heads from the first one on, of TOTAL of the result. Up to PARTS parts of
    them are loaded at once with their logarithms: no load waits for another."""
    index = tl.program_id(0)
    head = tl.program_id(1)
    combinations, record = tl.load(work + 2), work + (1 + tl.load(work) + tl.load(work + 1) + index) * RECORD
    token, first_row, rows = tl.load(record), tl.load(record + 1), tl.load(record + 2)
    first, count = tl.load(record + 3), tl.load(record + 4)
    overlap(DEPENDENT)
    if (index >= combinations) | (tl.program_id(2) * ROWS >= rows):
        return
    row, column = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    inside = row < rows
    member = first_row + row
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if SINKS:
        largest = tl.load(sinks + head * GROUP + member % GROUP).to(tl.float32) * LOG2_E
        total += 1.0
    sums = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        there = inside[:, None] & (part < count)[None, :]
        place = (((first + part) * HEADS + head) * ROOM)[None, :] + row.to(tl.int64)[:, None]
        log = tl.load(logs + place, mask=there, other=-float("inf"))
        mask = there[:, :, None] & (column < WIDTH)[None, None, :]
        parts = tl.load(partials + place[:, :, None] * WIDTH + column[None, None, :], mask=mask, other=0.0)
        weights, kept, largest, total = weigh(log, largest, total)
        sums = sums * kept[:, None] + tl.sum(parts * weights[:, :, None], 1)
    sums = sums / tl.where(total > 0, total, 1.0)[:, None]
    place = ((token + member // GROUP).to(tl.int64) * TOTAL + first_head + head) * GROUP + member % GROUP
    mask = within(inside, column, WIDTH, PADDED)
    tl.store(out + place[:, None] * WIDTH + column[None, :], sums.to(out.dtype.element_ty), mask=mask)
