"""Mixtures of experts: which expert a token gets, and the experts' gated MLPs on the tokens that are theirs.

A *pair* is a token and one of at most SLOTS experts that it has, in their order: `token * SLOTS + place`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.functions_triton import overlap, product, sigmoid


@triton.jit
def first_largest(values, index):
    """Of [groups, members]: the index of the largest of all, the first where some are equal."""
    best = tl.max(tl.max(values, 1), 0)
    return tl.min(tl.min(tl.where(values == best, index, 1 << 30), 1), 0)


@triton.jit
def route(logits, bias, out, x_token, HAS_BIAS: tl.constexpr, EXPERTS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_PADDED: tl.constexpr,
          MEMBERS_PADDED: tl.constexpr, TOP: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr, SIGMOID: tl.constexpr,
          NORMALIZE: tl.constexpr, SCALE: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """One token: its experts as [groups, members]."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    MEMBERS: tl.constexpr = EXPERTS // GROUPS
    group, member = tl.arange(0, GROUPS_PADDED)[:, None], tl.arange(0, MEMBERS_PADDED)[None, :]
    expert = group * MEMBERS + member
    there = (group < GROUPS) & (member < MEMBERS)
    wide = tl.load(logits + token * x_token + expert, mask=there, other=-float("inf")).to(tl.float32)
    if SIGMOID:
        scores = tl.where(there, sigmoid(tl.where(there, wide, 0.0)), 0.0)
    else:
        powers = tl.where(there, tl.exp(wide - tl.max(tl.max(wide, 1), 0)), 0.0)
        scores = powers / tl.sum(tl.sum(powers, 1), 0)
    ranked = scores
    if HAS_BIAS:
        ranked += tl.load(bias + expert, mask=there, other=0.0).to(tl.float32)
    ranked = tl.where(there, ranked, -float("inf"))
    if GROUPS > 1:
        left = ranked
        best = tl.zeros([GROUPS_PADDED], tl.float32)
        for _ in tl.static_range(GROUP_BEST):
            largest = tl.max(left, 1)
            best += largest
            place = tl.min(tl.where(left == largest[:, None], expert, 1 << 30), 1)
            left = tl.where(expert == place[:, None], -float("inf"), left)
        index = tl.arange(0, GROUPS_PADDED)
        best = tl.where(index < GROUPS, best, -float("inf"))
        kept = index < 0
        for _ in tl.static_range(TOP_GROUPS):
            left_groups = tl.where(kept, -float("inf"), best)
            largest_group = tl.max(left_groups, 0)
            kept |= index == tl.min(tl.where(left_groups == largest_group, index, 1 << 30), 0)
        ranked = tl.where(kept[:, None], ranked, -float("inf"))
    chosen = expert < 0
    for _ in tl.static_range(TOP):
        chosen |= expert == first_largest(tl.where(chosen, -float("inf"), ranked), expert)
    weights = tl.where(chosen, scores, 0.0)
    if NORMALIZE:
        weights = weights / (tl.sum(tl.sum(weights, 1), 0) + 1e-20)
    tl.store(out + token * EXPERTS + expert, (weights * SCALE).to(out.dtype.element_ty), mask=there)


@triton.jit
def place_pairs(weights, places, counts, w_token, EXPERTS: tl.constexpr, PADDED: tl.constexpr, DEPENDENT: tl.constexpr = False):
    """Of one token: how many experts it has before each, and in all."""
    overlap(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, PADDED)
    mask = expert < EXPERTS
    has = (tl.load(weights + token * w_token + expert, mask=mask, other=0.0).to(tl.float32) != 0).to(tl.int32)
    tl.store(places + token * EXPERTS + expert, tl.cumsum(has, 0) - has, mask=mask)
    tl.store(counts + token, tl.sum(has, 0))


@triton.jit
def list_pairs(weights, places, pairs, lengths, tokens, w_token, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr,
               DEPENDENT: tl.constexpr = False):  # fmt: skip
    """Of one expert: its pairs, in the order of the tokens, and how many."""
    overlap(DEPENDENT)
    expert = tl.program_id(0)
    found = tokens * 0
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < tokens
        wide = token.to(tl.int64)
        has = tl.load(weights + wide * w_token + expert, mask=mask, other=0.0).to(tl.float32) != 0
        place = tl.load(places + wide * EXPERTS + expert, mask=mask, other=SLOTS)
        kept = has & (place < SLOTS)
        before = tl.cumsum(kept.to(tl.int32), 0) - kept.to(tl.int32)
        tl.store(pairs + expert.to(tl.int64) * tokens + found + before, token * SLOTS + place, mask=kept)
        found += tl.sum(kept.to(tl.int32), 0)
    tl.store(lengths + expert, found)


@triton.jit
def gate_and_up(x, gate, up, gate_bias, up_bias, inner, pairs, lengths, tokens, x_token, HAS_BIAS: tl.constexpr, OUTER: tl.constexpr,
                INNER: tl.constexpr, SLOTS: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr, OFFSET: tl.constexpr,
                ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Some inner elements of one expert, for all its pairs: inner [pairs, F]."""
    expert = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + expert)
    f = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = f < INNER
    row = (expert * INNER + f)[:, None] * OUTER
    for begin in range(0, length, ROWS):
        index = begin + tl.arange(0, ROWS)
        there = index < length
        pair = tl.load(pairs + expert * tokens + index, mask=there, other=0).to(tl.int64)
        from_x = x + (pair // SLOTS)[:, None] * x_token
        g, u = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, OUTER, DEPTH):
            k = start + tl.arange(0, DEPTH)[None, :]
            a = tl.load(from_x + k, mask=there[:, None] & (k < OUTER), other=0.0)
            mask = wanted[:, None] & (k < OUTER)
            g = product(a, tl.trans(tl.load(gate + row + k, mask=mask, other=0.0)), g)
            u = product(a, tl.trans(tl.load(up + row + k, mask=mask, other=0.0)), u)
        if HAS_BIAS:
            g += tl.load(gate_bias + expert * INNER + f, mask=wanted, other=0.0).to(tl.float32)[None, :]
            u += tl.load(up_bias + expert * INNER + f, mask=wanted, other=0.0).to(tl.float32)[None, :]
        if LIMIT != 0:
            g = tl.minimum(g, LIMIT)
            u = tl.minimum(tl.maximum(u, -LIMIT), LIMIT)
        made = g * sigmoid(ALPHA * g) * (u + OFFSET)
        tl.store(inner + pair[:, None] * INNER + f[None, :], made.to(inner.dtype.element_ty), mask=there[:, None] & wanted[None, :])


@triton.jit
def down(inner, weights, w, bias, made, pairs, lengths, tokens, w_token, HAS_BIAS: tl.constexpr, OUTER: tl.constexpr,
         INNER: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Some outer elements of one expert times its weights, for all its pairs: made f32 [pairs, D]."""
    expert = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + expert)
    d = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = d < OUTER
    row = (expert * OUTER + d)[:, None] * INNER
    for begin in range(0, length, ROWS):
        index = begin + tl.arange(0, ROWS)
        there = index < length
        pair = tl.load(pairs + expert * tokens + index, mask=there, other=0).to(tl.int64)
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, INNER, DEPTH):
            k = start + tl.arange(0, DEPTH)[None, :]
            a = tl.load(inner + pair[:, None] * INNER + k, mask=there[:, None] & (k < INNER), other=0.0)
            sums = product(a, tl.trans(tl.load(w + row + k, mask=wanted[:, None] & (k < INNER), other=0.0)), sums)
        if HAS_BIAS:
            sums += tl.load(bias + expert * OUTER + d, mask=wanted, other=0.0).to(tl.float32)[None, :]
        weight = tl.load(weights + pair // SLOTS * w_token + expert, mask=there, other=0.0).to(tl.float32)
        tl.store(made + pair[:, None] * OUTER + d[None, :], sums * weight[:, None], mask=there[:, None] & wanted[None, :])


@triton.jit
def add_pairs(made, counts, out, OUTER: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr = False):
    """A token's results, in the order of its experts. One that has more than there are slots for becomes NaN: it is not to be believed."""
    overlap(DEPENDENT)
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < OUTER
    count = tl.load(counts + token)
    sums = tl.zeros([BLOCK], tl.float32)
    for place in range(0, tl.minimum(count, SLOTS)):
        sums += tl.load(made + (token * SLOTS + place) * OUTER + column, mask=mask, other=0.0)
    sums = tl.where(count > SLOTS, float("nan"), sums)
    tl.store(out + token * OUTER + column, sums.to(out.dtype.element_ty), mask=mask)
