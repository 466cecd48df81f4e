"""Recurrences over the tokens of a sequence, token after token, whose state is a page. `~page` begins from zeros.

Rows of no sequence are to be zeros: they are cleared before.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clear(out, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + token * COUNT + column, tl.zeros([BLOCK], tl.float32).to(out.dtype.element_ty), mask=column < COUNT)


@triton.jit
def short_conv(x, w, state, spans, states, out, shard, tokens, x_token, x_row, CHANNELS: tl.constexpr, ROW: tl.constexpr,
               TAPS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Some channels of one sequence. state [pages, W-1, channels] has the inputs of the last tokens."""
    sequence, channel = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(spans + 2 * sequence), tl.load(spans + 2 * sequence + 1)
    first, last = tl.maximum(begin, shard * tokens) - shard * tokens, tl.minimum(end, shard * tokens + tokens) - shard * tokens
    if first >= last:
        return
    page = tl.load(states + sequence)
    begins = page < 0
    own = state + tl.where(begins, ~page, page).to(tl.int64) * ((TAPS - 1) * CHANNELS)
    mask = (channel < CHANNELS)[None, :]
    source = x + (channel // ROW * x_row + channel % ROW)[None, :]
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        there = (row < last)[:, None] & mask
        sums = tl.zeros([ROWS, BLOCK], tl.float32)
        for tap in tl.static_range(TAPS):
            input = row - (TAPS - 1) + tap
            new = tl.load(source + input.to(tl.int64)[:, None] * x_token, mask=there & (input >= first)[:, None], other=0.0)
            kept = (input - first + TAPS - 1)[:, None] * CHANNELS + channel[None, :]
            old = tl.load(own + kept, mask=there & (input < first)[:, None] & (not begins), other=0.0)
            factor = tl.load(w + channel * TAPS + tap, mask=channel < CHANNELS, other=0.0).to(tl.float32)
            sums += (new.to(tl.float32) + old.to(tl.float32)) * factor[None, :]
        tl.store(out + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :], sums.to(out.dtype.element_ty), mask=there)
    count = last - first
    tl.debug_barrier()  # other threads read what is written now
    for place in tl.static_range(TAPS - 1):
        # Upwards: what is read is at or behind what was written.
        input = last - (TAPS - 1) + place
        inside = channel < CHANNELS
        new = tl.load(
            x + (channel // ROW * x_row + channel % ROW) + input.to(tl.int64) * x_token, mask=inside & (input >= first), other=0.0
        )
        old = tl.load(own + (place + count) * CHANNELS + channel, mask=inside & (input < first) & (not begins), other=0.0)
        tl.store(own + place * CHANNELS + channel, new.to(tl.float32) + old, mask=inside)


@triton.jit
def gated_delta(q, k, v, decay, beta, state, spans, states, out, shard, tokens, q_token, q_head, k_token, k_head, v_token, v_head,
                v_member, b_token, b_head, b_member, HEADS: tl.constexpr, GROUP: tl.constexpr, KEY: tl.constexpr, KEY_PADDED: tl.constexpr,
                VALUE: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Some columns of one sequence's matrix of one head: state [pages, K, G, A, E]."""
    sequence = tl.program_id(0)
    member = tl.program_id(1)
    head = member // GROUP
    begin, end = tl.load(spans + 2 * sequence), tl.load(spans + 2 * sequence + 1)
    first, last = tl.maximum(begin, shard * tokens) - shard * tokens, tl.minimum(end, shard * tokens + tokens) - shard * tokens
    if first >= last:
        return
    page = tl.load(states + sequence)
    begins = page < 0
    a, e = tl.arange(0, KEY_PADDED), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    keyed, valued = a < KEY, e < VALUE
    own = (tl.where(begins, ~page, page).to(tl.int64) * (HEADS * GROUP) + member) * (KEY * VALUE)
    own = state + own + a[:, None] * VALUE + e[None, :]
    mask = keyed[:, None] & valued[None, :]
    matrix = tl.load(own, mask=mask & (not begins), other=0.0).to(tl.float32)
    for row in range(first, last):
        token = tl.cast(row, tl.int64)
        query = tl.load(q + token * q_token + head * q_head + a, mask=keyed, other=0.0).to(tl.float32)
        key = tl.load(k + token * k_token + head * k_head + a, mask=keyed, other=0.0).to(tl.float32)
        query = query * (tl.rsqrt(tl.sum(query * query, 0) + EPS) * SCALE)
        key = key * tl.rsqrt(tl.sum(key * key, 0) + EPS)
        value = tl.load(v + token * v_token + head * v_head + member % GROUP * v_member + e, mask=valued, other=0.0).to(tl.float32)
        gain = tl.load(beta + token * b_token + head * b_head + member % GROUP * b_member).to(tl.float32)
        matrix = matrix * tl.load(decay + token * (HEADS * GROUP) + member)
        change = (value - tl.sum(matrix * key[:, None], 0)) * gain
        matrix = matrix + key[:, None] * change[None, :]
        made = tl.sum(matrix * query[:, None], 0)
        tl.store(out + (token * (HEADS * GROUP) + member) * VALUE + e, made.to(out.dtype.element_ty), mask=valued)
    tl.store(own, matrix.to(state.dtype.element_ty), mask=mask)
