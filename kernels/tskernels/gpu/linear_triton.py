"""Products with weights: of one row, of few, two of which one gates the other, and those whose weight is stored quantized (`quantized.py`
says how).

Of a quantized weight the codes are multiplied, which are exact in any type, and scaled afterwards, group by group, in f32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.functions_triton import activated, overlap, product

PANEL = tl.constexpr(32)
GROUP = tl.constexpr(32)


@triton.jit
def some_inputs(pointers, k, START: tl.constexpr, INNER: tl.constexpr, DEPTH: tl.constexpr):
    """DEPTH numbers from START on, of INNER; zeros past them."""
    if START + DEPTH <= INNER:
        return tl.load(pointers + START)
    return tl.load(pointers + START, mask=START + k < INNER, other=0.0)


@triton.jit
def one_row(x, w, bias, out, x_token, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, INNER: tl.constexpr, OUTPUTS: tl.constexpr,
            COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DEPENDENT: tl.constexpr = False):  # fmt: skip
    """Of each row by itself: x [T, I], w [F, I], or of a gate and what it gates, where ACTIVATION is not empty, [2*F, I].

    Nothing is done here but reading w, once: it comes straight to registers, each thread has many loads under way, and multiplies in f32
    where tensor cores would want 16 rows. Small blocks, many more than there is room for at a time, keep all multiprocessors busy to the
    end. The first of w is asked for before the launches before have ended."""
    row, output = tl.program_id(1).to(tl.int64), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)[None, :]
    # Past the outputs, the last stands in, and is not kept.
    from_w = w + tl.minimum(output, OUTPUTS - 1).to(tl.int64)[:, None] * INNER + k
    from_up = from_w + OUTPUTS * INNER
    first = some_inputs(from_w, k, 0, INNER, DEPTH)
    if ACTIVATION != "":
        first_up = some_inputs(from_up, k, 0, INNER, DEPTH)
    overlap(DEPENDENT)
    from_x = x + row * x_token + k
    a = some_inputs(from_x, k, 0, INNER, DEPTH).to(tl.float32)
    sums = a * first.to(tl.float32)
    if ACTIVATION != "":
        ups = a * first_up.to(tl.float32)
    for start in tl.static_range(DEPTH, INNER, DEPTH):
        a = some_inputs(from_x, k, start, INNER, DEPTH).to(tl.float32)
        sums += a * some_inputs(from_w, k, start, INNER, DEPTH).to(tl.float32)
        if ACTIVATION != "":
            ups += a * some_inputs(from_up, k, start, INNER, DEPTH).to(tl.float32)
    made = tl.sum(sums, 1)
    if HAS_BIAS:
        made += tl.load(bias + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)
    if ACTIVATION != "":
        made = activated(made, ACTIVATION) * tl.sum(ups, 1)
    tl.store(out + row * OUTPUTS + output, made.to(out.dtype.element_ty), mask=output < OUTPUTS)


@triton.jit
def linear(x, w, bias, out, rows, x_token, HAS_BIAS: tl.constexpr, INNER: tl.constexpr, OUTPUTS: tl.constexpr,
           ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """x [T, I], w [F, I]: F outputs."""
    row, output = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, k = (row < rows)[:, None], tl.arange(0, DEPTH)[None, :]
    from_x = x + row.to(tl.int64)[:, None] * x_token + k
    from_w = w + tl.minimum(output, OUTPUTS - 1).to(tl.int64)[:, None] * INNER + k
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, INNER // DEPTH * DEPTH, DEPTH):
        sums = product(tl.load(from_x + start, mask=there, other=0.0), tl.trans(tl.load(from_w + start)), sums)
    if INNER % DEPTH != 0:
        rest: tl.constexpr = INNER // DEPTH * DEPTH
        a = tl.load(from_x + rest, mask=there & (rest + k < INNER), other=0.0)
        sums = product(a, tl.trans(tl.load(from_w + rest, mask=rest + k < INNER, other=0.0)), sums)
    if HAS_BIAS:
        sums += tl.load(bias + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=there & (output < OUTPUTS)[None, :])


@triton.jit
def gated_linear(x, w, out, rows, x_token, ACTIVATION: tl.constexpr, INNER: tl.constexpr, OUTPUTS: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """x [T, I], w [2*F, I]: F outputs."""
    row, output = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there, wanted = (row < rows)[:, None], (output < OUTPUTS)[:, None]
    from_x, from_w = x + row.to(tl.int64)[:, None] * x_token, w + output.to(tl.int64)[:, None] * INNER
    gate, up = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, INNER, DEPTH):
        k = start + tl.arange(0, DEPTH)[None, :]
        a = tl.load(from_x + k, mask=there & (k < INNER), other=0.0)
        mask = wanted & (k < INNER)
        gate = product(a, tl.trans(tl.load(from_w + k, mask=mask, other=0.0)), gate)
        up = product(a, tl.trans(tl.load(from_w + OUTPUTS * INNER + k, mask=mask, other=0.0)), up)
    place = row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(out + place, (activated(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=there & (output < OUTPUTS)[None, :])


@triton.jit
def codes_of(w, output, k, PANEL_BYTES: tl.constexpr, BLOCK_BYTES: tl.constexpr, BLOCK_HEAD: tl.constexpr, GROUP_HEAD: tl.constexpr,
             GROUPS: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """u8 [outputs, k] where GROUPS groups are in a block, all of the row where it is 0."""
    lane = (output % PANEL)[:, None] * 4
    place = (output // PANEL).to(tl.int64)[:, None] * PANEL_BYTES
    if GROUPS == 0:
        return tl.load(w + place + BLOCK_HEAD + k // 4 * (4 * PANEL) + lane + k % 4)
    else:
        group, within = k // GROUP, k % GROUP
        head = group // GROUPS * BLOCK_BYTES + BLOCK_HEAD + group % GROUPS * (GROUP_HEAD + GROUP * PANEL * BITS // 8) + GROUP_HEAD
        if BITS == 8:
            return tl.load(w + place + head + within // 4 * (4 * PANEL) + lane + within % 4)
        else:
            pair = tl.load(w + place + head + within // 8 * (4 * PANEL) + lane + within % 4)
            return (pair >> (within // 4 % 2 * 4).to(tl.uint8)) & 15


@triton.jit
def add_group(sums, a, total, w, output, start, OFFSET: tl.constexpr, HAS_MINIMUM: tl.constexpr, PANEL_BYTES: tl.constexpr,
              BLOCK_BYTES: tl.constexpr, BLOCK_HEAD: tl.constexpr, GROUP_HEAD: tl.constexpr, GROUPS: tl.constexpr,
              BITS: tl.constexpr):  # fmt: skip
    """What a group of inputs `a` adds, whose sum is `total`: it has a scale and a minimum, or its block a scale and a zero point."""
    k = start + tl.arange(0, GROUP)[None, :]
    codes = codes_of(w, output, k, PANEL_BYTES, BLOCK_BYTES, BLOCK_HEAD, GROUP_HEAD, GROUPS, BITS).to(tl.int32) - OFFSET
    group, lane = start // GROUP, output % PANEL
    block = w + (output // PANEL).to(tl.int64) * PANEL_BYTES + group // GROUPS * BLOCK_BYTES
    if BLOCK_HEAD > 0:
        scale = tl.load(block.to(tl.pointer_type(tl.float32)) + lane)
        codes -= tl.load((block + 4 * PANEL).to(tl.pointer_type(tl.int8)) + lane).to(tl.int32)[:, None]
    else:
        scale = tl.load(block.to(tl.pointer_type(tl.float16)) + lane).to(tl.float32)
    part = product(a, tl.trans(codes.to(tl.float32).to(a.dtype)), tl.zeros(sums.shape, tl.float32))
    sums += part * scale[None, :]
    if HAS_MINIMUM:
        minimum = tl.load((block + 2 * PANEL).to(tl.pointer_type(tl.float16)) + lane).to(tl.float32)
        sums += total[:, None] * minimum[None, :]
    return sums


@triton.jit
def quantized_linear(x, w, bias, out, rows, x_token, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, INNER: tl.constexpr,
                     OUTPUTS: tl.constexpr, OFFSET: tl.constexpr, HAS_MINIMUM: tl.constexpr, PANEL_BYTES: tl.constexpr,
                     BLOCK_BYTES: tl.constexpr, BLOCK_HEAD: tl.constexpr, GROUP_HEAD: tl.constexpr, GROUPS: tl.constexpr,
                     BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """OUTPUTS: of the result. ACTIVATION: of a gate, which is then 16 outputs before what it gates in a panel; none where empty."""
    row, output = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None]
    # Whole panels are stored; past them, the last output stands in, and is not kept.
    stored = tl.minimum(output, OUTPUTS - 1)
    if ACTIVATION != "":
        stored = stored // 16 * PANEL + stored % 16
    from_x = x + row.to(tl.int64)[:, None] * x_token
    sums, ups = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, INNER, DEPTH):
        k = start + tl.arange(0, DEPTH)[None, :]
        a = tl.load(from_x + k, mask=there & (k < INNER), other=0.0)
        if GROUPS == 0:
            last = tl.minimum(k, INNER - 1)
            codes = codes_of(w, stored, last, PANEL_BYTES, BLOCK_BYTES, BLOCK_HEAD, GROUP_HEAD, GROUPS, BITS)
            sums = product(a, tl.trans((codes.to(tl.int32) - OFFSET).to(tl.float32).to(a.dtype)), sums)
            if ACTIVATION != "":
                codes = codes_of(w, stored + 16, last, PANEL_BYTES, BLOCK_BYTES, BLOCK_HEAD, GROUP_HEAD, GROUPS, BITS)
                ups = product(a, tl.trans((codes.to(tl.int32) - OFFSET).to(tl.float32).to(a.dtype)), ups)
        else:
            total = tl.sum(a.to(tl.float32), 1)
            sums = add_group(sums, a, total, w, stored, start, OFFSET, HAS_MINIMUM, PANEL_BYTES, BLOCK_BYTES, BLOCK_HEAD, GROUP_HEAD,
                             GROUPS, BITS)  # fmt: skip
            if ACTIVATION != "":
                ups = add_group(ups, a, total, w, stored + 16, start, OFFSET, HAS_MINIMUM, PANEL_BYTES, BLOCK_BYTES, BLOCK_HEAD,
                                GROUP_HEAD, GROUPS, BITS)  # fmt: skip
    if GROUPS == 0:
        scale = (w + (stored // PANEL).to(tl.int64) * PANEL_BYTES).to(tl.pointer_type(tl.float32)) + stored % PANEL
        sums *= tl.load(scale)[None, :]
        if ACTIVATION != "":
            ups *= tl.load(scale + 16)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION != "":
        sums = activated(sums, ACTIVATION) * ups
    place = row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=there & (output < OUTPUTS)[None, :])
