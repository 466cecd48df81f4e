"""Small kernels written by hand: PTX around a body."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tskernels.emulator import Argument, Array, Report, launch


def kernel(body: str, parameters: Sequence[str], shared: int = 0) -> str:
    """The text of a kernel `k`. parameters: their types; `map` is a tensor map. %r, %rd, %f, %p and %h are registers, t is the thread's
    number; p0, p1, ... are the parameters, s is shared memory."""
    declared = [f".param .align 64 .b8 k_{i}[128]" if kind == "map" else f".param .{kind} k_{i}" for i, kind in enumerate(parameters)]
    loads = []
    for i, kind in enumerate(parameters):
        width = "64" if kind in ("map", "u64", "b64") else "32"
        loads.append(f".reg .b{width} p{i};")
        loads.append(f"mov.b64 p{i}, k_{i};" if kind == "map" else f"ld.param.b{width} p{i}, [k_{i}];")
    return "\n".join(
        [
            ".version 8.8\n.target sm_100a\n.address_size 64",
            f".visible .entry k({', '.join(declared)})",
            "{",
            ".reg .pred %p<64>; .reg .b16 %h<64>; .reg .b32 %r<512>; .reg .b64 %rd<128>; .reg .f32 %f<256>; .reg .b32 t;",
            f".shared .align 1024 .b8 s[{shared}];" if shared else "",
            *loads,
            "mov.u32 t, %tid.x;",
            body,
            "ret;\n}",
        ]
    )


def run(
    body: str,
    arguments: Sequence[tuple[str, Argument]],
    *,
    shared: int = 0,
    grid: int = 1,
    block: int = 32,
    cluster: int = 1,
    unfinished: Sequence[Array] | None = None,
) -> Report:
    """Launch a body with (type, argument) each."""
    text = kernel(body, [kind for kind, _ in arguments], shared)
    return launch(text, "k", grid, block, [value for _, value in arguments], cluster=cluster, unfinished=unfinished)


def each_thread(out: str, value: str, bits: int = 32) -> str:
    """Store a register to the thread's own place of an array."""
    return f"mad.wide.u32 %rd127, t, {bits // 8}, {out}; st.global.b{bits} [%rd127], {value};"


def line_of(text: str, pattern: str) -> int:
    """The number of the first line that matches."""
    return next(i for i, line in enumerate(text.split("\n"), 1) if re.search(pattern, line))
