"""Which sequences of a step have their latents expanded into keys and values: the rule that `latent_attention` and `expanded_attention`
share, so that each row is one's or the other's. Needs no torch: the host plans with it, too.

Absorbed, a head multiplies C + R + C numbers for each pair of a query and a key; expanded A + R + E, but C * (A + E) more for each key,
once for all queries of a sequence's new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tskernels.registry import Call, one_float_type

MOST_KEYS: Final = 1 << 18
"""Of all sequences of a step together that are expanded: what is made of them takes memory."""


def break_even(content: int, rotated: int, latent: int, values: int) -> int:
    """From how many new tokens on a sequence takes fewer multiplications expanded, whatever its length; 0: it never does."""
    saved = (latent + rotated + latent) - (content + rotated + values)
    return latent * (content + values) // saved + 1 if saved > 0 else 0


def expanded(spans: Sequence[tuple[int, int]], lengths: Sequence[int], expanded_from: int) -> list[bool]:
    """Of each sequence, whether it is expanded: of `expanded_from` new tokens or more, where that is not 0; in their order, those left
    out whose keys would be more than MOST_KEYS with those before."""
    found, room = [], MOST_KEYS
    for (first, last), length in zip(spans, lengths, strict=True):
        found.append(0 < expanded_from <= last - first and length <= room)
        room -= length if found[-1] else 0
    return found


def all_absorbed(call: Call) -> bool:
    """floating operands of one element type, and that all sequences are absorbed."""
    return one_float_type(call) and not call.attributes.get("expanded_from")
