"""The sum over ranks with all ranks in one launch, for the emulator: a rank is a thread block, and its exchanges follow each other as in a
stream. Its PTX comes from a process of its own, which compiles: `python -m tests.gpu.ranks_triton`."""
# mypy: ignore-errors
# since it is written in Triton's language.

from __future__ import annotations

import json
from typing import Any

import triton
import triton.language as tl

from tskernels.gpu.all_reduce_triton import all_reduce

WIDTHS = (128, 40)
RANKS = 3
TIMES = 3
CAPACITY = 4096
ROWS = 2
WARPS = 2


@triton.jit
def exchanges(x, residual, w, out, memory, tables, rows, ranks, wide, narrow, MEMORY: tl.constexpr, TIMES: tl.constexpr,
              WIDE: tl.constexpr, NARROW: tl.constexpr, CAPACITY: tl.constexpr):  # fmt: skip
    """TIMES pairs: a wide one with all that there is, and a narrow one. x, out: of each rank, one exchange after the other."""
    rank = tl.program_id(1)
    table = tables + rank * ranks
    for member in range(ranks):
        tl.store(table + member, memory.to(tl.int64) + member * MEMORY)
    tl.debug_barrier()
    x += rank * TIMES * rows * (WIDE + NARROW)
    out += rank * TIMES * rows * (2 * WIDE + NARROW)
    for _ in range(TIMES):
        all_reduce(x, residual, w, out, table, wide, wide, rows, rank, ranks, WIDE, WIDE, 1, CAPACITY, 1 << 20, True, True, 1e-6, 0.5)
        tl.debug_barrier()
        x += rows * WIDE
        out += rows * 2 * WIDE
        all_reduce(x, x, x, out, table, narrow, narrow, rows, rank, ranks, NARROW, 64, 1, CAPACITY, 1 << 20, False, False, 0.0, 0.0)
        tl.debug_barrier()
        x += rows * NARROW
        out += rows * NARROW


def compiled() -> dict[str, Any]:
    """The PTX, with the bytes of shared memory that it needs."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes = {"TIMES": TIMES, "WIDE": WIDTHS[0], "NARROW": WIDTHS[1], "CAPACITY": CAPACITY}
    constants = sizes | {"MEMORY": memory_size()}
    names = exchanges.arg_names
    types = {**dict.fromkeys(("x", "residual", "w", "out"), "*fp32"), "memory": "*u8", "tables": "*i64"}
    types |= dict.fromkeys(("rows", "ranks", "wide", "narrow"), "i32")
    source = ASTSource(
        fn=exchanges,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "").startswith("*")},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS, "num_stages": 1})
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared}


def memory_size() -> int:
    """Of a rank's memory where an exchange has one block, and slots are small; a multiple of 16."""
    return -(-((RANKS + 1) * 4 + 2 * RANKS * CAPACITY) // 16) * 16


if __name__ == "__main__":
    print(json.dumps(compiled()))
