"""The emulator's machine, in C++ (kernels/emulator). `tskernels.emulator` is what others call."""

from typing import Any

class Fault(Exception):
    """args: kind, line of the PTX or 0, what is wrong and how to mend it."""

def run(
    text: str,
    kernel: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    cluster: tuple[int, int, int],
    shared_bytes: int,
    strict: bool,
    max_instructions: int,
    arrays: list[tuple[Any, bool, bool]],
    arguments: list[tuple[Any, ...]],
    dependent: bool,
    unfinished: list[tuple[int, int, int]],
    /,
) -> dict[str, int]:
    """Run a kernel over a grid; arrays are (contiguous array, writable, initialized), arguments refer to them by number; unfinished:
    (array, offset, bytes) of what the launch before a dependent one may still use."""
