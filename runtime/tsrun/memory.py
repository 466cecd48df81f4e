"""What the process asks of the system for its memory, and what it gives back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import sys
from collections.abc import Callable
from math import prod

from tskernels.dtypes import size_bytes
from tsrun.places import Place, fixed


def give_back_memory() -> None:
    """Give back what the C library keeps of freed memory, where it is one that can be asked to."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def zeros(shape: tuple[int, ...], dtype: str) -> Place:
    """Zeros that take memory only where they are written. Not whatever was there: a kernel may multiply rows that it masks, and NaN times
    zero is NaN."""
    memory = mmap.mmap(-1, prod(shape) * size_bytes(dtype), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ask_for_huge_pages(memory)
    return fixed(ctypes.addressof(ctypes.c_char.from_buffer(memory)), dtype, shape, memory)


Zeros = Callable[[tuple[int, ...], str], Place]
"""What gives zeros of a shape and an element type."""


def ask_for_huge_pages(memory: mmap.mmap) -> None:
    """Have memory mapped in huge pages where the system can: it is read at up to twice the speed."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)


def ask_for_small_pages(memory: mmap.mmap, begin: int, end: int) -> None:
    """Have the whole pages between two offsets mapped in the smallest pages there are: what is not touched then takes no memory."""
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if hasattr(mmap, "MADV_NOHUGEPAGE") and first < last:
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE, first, last - first)


def keep_for_good() -> None:
    """What there is by now stays: Python's collector need not look at it again, which would take as long as a step or two."""
    gc.collect()
    gc.freeze()
