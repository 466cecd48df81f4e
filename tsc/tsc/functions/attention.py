"""Attention over a paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, names_of, number
from tsc.signatures import Signature
from tsc.types import Shape


def _cache_append(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    cache, k, v = shapes
    wanted = cache.factors[1:]
    for operand, x in ((1, k), (2, v)):
        if len(x.factors) != len(wanted) + 1 or not all(a.agrees(b) for a, b in zip(x.factors[1:], wanted, strict=True)):
            raise Mismatch(operand, f"the cache holds {names_of(wanted)} for each token, got {x.text()}")
    labels = ("k", None)
    return Typing(cache, Signature(((None, *labels), ("t", *labels), ("t", *labels)), (None, *labels)))


def _attention(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    q, cache = shapes
    if len(q.factors) != 4 or len(cache.factors) != 3:
        raise Mismatch(0, f"`attention` takes queries [T, K, G, E] and a cache [2, K, E], got {q.text()} and {cache.text()}")
    if not (q.factors[1].agrees(cache.factors[1]) and q.factors[3].agrees(cache.factors[2])):
        raise Mismatch(0, f"the queries' K/V heads and width must be the cache's, got {q.text()} and {cache.text()}")
    signature = Signature(((None, "k", "g", None), (None, "k", None)), (None, "k", "g", None))
    attributes = {name: number(statics, name, "attention") for name in ("scale", "softcap")}
    return Typing(q, signature, attributes)


FUNCTIONS: Mapping[str, Builtin] = {
    "cache_append": Builtin(("cache", "k", "v"), _cache_append, ("[2, K, E]", "[T, K, E]", "[T, K, E]")),
    "attention": Builtin(("q", "cache"), _attention, ("[T, K, G, E]", "[2, K, E]"), {"scale": ..., "softcap": 0.0}),
}
