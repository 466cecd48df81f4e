"""A sum over ranks that a kernel makes itself: each rank writes its part into the memory of all, says so, waits for theirs, and adds.

All ranks add in the same order, and round as the ops do that the sum is joined with. Memory is laid out as in `peers.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tskernels.gpu.functions_triton import normalized


@triton.jit
def all_reduce(x, residual, w, out, memories, x_token, residual_token, rows, rank, ranks, WIDTH: tl.constexpr, PADDED: tl.constexpr,
               BLOCKS: tl.constexpr, CAPACITY: tl.constexpr, PATIENCE: tl.constexpr, ADDS: tl.constexpr, NORMALIZES: tl.constexpr,
               EPS: tl.constexpr, OFFSET: tl.constexpr):  # fmt: skip
    """Each block takes every BLOCKS-th row. residual: where it ADDS; w: where it NORMALIZES, and gives both, side by side."""
    block = tl.program_id(0)
    element = x.dtype.element_ty
    own = tl.load(memories + rank)
    counts = (own + ranks * BLOCKS * 4).to(tl.pointer_type(tl.int32)) + block
    count = tl.atomic_add(counts, 1, sem="relaxed") + 1
    slots = (ranks + 1) * BLOCKS * 4 + (count % 2) * ranks * CAPACITY
    column = tl.arange(0, PADDED)
    filled = column < WIDTH

    for row in range(block, rows, BLOCKS):
        part = tl.load(x + row * x_token.to(tl.int64) + column, mask=filled, other=0.0)
        for member in range(0, ranks):
            slot = (tl.load(memories + member) + slots + rank * CAPACITY).to(tl.pointer_type(element))
            tl.store(tl.multiple_of(slot + row * WIDTH + column, 16), part, mask=filled)

    missing = count * 0
    if block < rows:
        missing = meet(memories, own, block, count, rank, ranks, BLOCKS, PATIENCE)

    for row in range(block, rows, BLOCKS):
        total = tl.zeros([PADDED], tl.float32)
        for member in range(0, ranks):
            slot = (own + slots + member * CAPACITY).to(tl.pointer_type(element))
            total += tl.load(tl.multiple_of(slot + row * WIDTH + column, 16), mask=filled, other=0.0).to(tl.float32)
        total = tl.where(missing == 0, total, float("nan"))
        target = out + row * (2 * WIDTH if NORMALIZES else WIDTH) + column
        if ADDS:
            before = tl.load(residual + row * residual_token.to(tl.int64) + column, mask=filled, other=0.0)
            total = before.to(tl.float32) + total.to(element).to(tl.float32)
        tl.store(target, total.to(element), mask=filled)
        if NORMALIZES:
            gain = tl.load(w + column, mask=filled, other=0.0).to(tl.float32) + OFFSET
            tl.store(target + WIDTH, normalized(total.to(element), gain, WIDTH, EPS), mask=filled)


@triton.jit
def meet(memories, own, block, count, rank, ranks, BLOCKS: tl.constexpr, PATIENCE: tl.constexpr):
    """This block of all ranks has written; how many ranks did not come. One may be an exchange ahead: it waits for flags alone."""
    tl.debug_barrier()
    for member in range(0, ranks):
        flags = tl.load(memories + member).to(tl.pointer_type(tl.int32))
        tl.atomic_xchg(flags + rank * BLOCKS + block, count, sem="release", scope="sys")
    missing = count * 0
    for member in range(0, ranks):
        flag = own.to(tl.pointer_type(tl.int32)) + member * BLOCKS + block
        looks = count * 0
        seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
        while (seen - count < 0) & (looks < PATIENCE):  # as they wrap around
            seen = tl.atomic_add(flag, 0, sem="acquire", scope="sys")
            looks += 1
        missing += (seen - count < 0).to(tl.int32)
    tl.debug_barrier()
    return missing
