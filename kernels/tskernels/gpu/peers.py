"""Memory of a rank that the other ranks of an axis write to: how it is laid out, for those who allocate it and for kernels.

An exchange has so many thread blocks, whatever it exchanges. Each has a *count* of the exchanges that there were, which only its own rank
reads, and a *flag* for each rank, where that says which exchange it is at. What a rank sends lies in a *slot* for each sender; there are
two sets of slots, which take turns. An axis of n ranks has, in this order:

    flags i32[n, BLOCKS]; counts i32[BLOCKS]; slots u8[2, n, CAPACITY]

One meeting an exchange is enough: who sends again into a set of slots has met, in the exchange between, all who read it.
"""

from __future__ import annotations

from typing import Final

BLOCKS: Final = 64
CAPACITY: Final = 1 << 20
"""Bytes of a slot. Above, ranks had better share out the sum than each add up all of it."""
PATIENCE: Final = 1 << 27
"""How often a flag is looked at before a rank is given up, and the sum is NaN: a minute or two, where it would have hung."""


def memory_bytes(ranks: int) -> int:
    """Of a rank's memory for an axis of so many."""
    return (ranks + 1) * BLOCKS * 4 + 2 * ranks * CAPACITY
