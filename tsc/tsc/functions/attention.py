"""Attention over a paged cache: of keys and values for each head, or of one latent row for all heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsc.functions.common import Builtin, Mismatch, Typing, names_of, number
from tsc.signatures import Signature
from tsc.types import Shape


def _cache_append(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    cache, k, v = shapes
    wanted = cache.factors[2:]
    for operand, x in ((1, k), (2, v)):
        if len(x.factors) != len(wanted) + 1 or not all(a.agrees(b) for a, b in zip(x.factors[1:], wanted, strict=True)):
            raise Mismatch(operand, f"the cache holds {names_of(wanted)} for each token, got {x.text()}")
    rows = ("t", "k", None)
    pages = ("t", None, "k", None)  # ranks that share out tokens by sequences have pages for their own
    return Typing(cache, Signature((pages, rows, rows), pages))


def _attention(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    q, cache = shapes
    if len(q.factors) != 4 or len(cache.factors) != 4:
        raise Mismatch(0, f"`attention` takes queries [T, K, G, E] and a cache [pages, 2, K, E], got {q.text()} and {cache.text()}")
    if not (q.factors[1].agrees(cache.factors[2]) and q.factors[3].agrees(cache.factors[3])):
        raise Mismatch(0, f"the queries' K/V heads and width must be the cache's, got {q.text()} and {cache.text()}")
    signature = Signature((("t", "k", "g", None), ("t", None, "k", None)), ("t", "k", "g", None))
    attributes = {name: number(statics, name, "attention") for name in ("scale", "softcap")}
    return Typing(q, signature, attributes)


def _sink_attention(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    q, cache, sinks = shapes
    typing = _attention((q, cache), statics)
    if len(sinks.factors) != 2 or not all(a.agrees(b) for a, b in zip(q.factors[1:3], sinks.factors, strict=True)):
        raise Mismatch(2, f"there is a sink for each query head, [{q.factors[1].name}, {q.factors[2].name}], got {sinks.text()}")
    of_q, of_cache = typing.signature.operands
    return Typing(q, Signature((of_q, of_cache, ("k", "g")), of_q), typing.attributes)


def _latent_append(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    cache, latent, rotated = shapes
    for operand in (1, 2):
        if len(shapes[operand].factors) != 2:
            raise Mismatch(operand, f"a latent cache takes a row for each token, [T, C] and [T, R], got {shapes[operand].text()}")
    parts = (latent.factors[1], rotated.factors[1])
    if None not in (cache.factors[1].size, *(p.size for p in parts)) and cache.factors[1].size != sum(p.size or 0 for p in parts):
        text = f"the cache holds {cache.factors[1].size} numbers for each token, and {names_of(parts)} are {[p.size for p in parts]}"
        raise Mismatch(0, text)
    return Typing(cache, Signature((("t", None), ("t", None), ("t", None)), ("t", None)))


def _latent_attention(shapes: Sequence[Shape], statics: Mapping[str, Any]) -> Typing:
    q, rotated, cache = shapes
    if len(q.factors) != 3 or len(rotated.factors) != 3 or len(cache.factors) != 2:
        text = f"got {q.text()}, {rotated.text()} and {cache.text()}"
        raise Mismatch(0, f"`latent_attention` takes queries [T, H, C], their rotated part [T, H, R] and a cache [pages, W], {text}")
    if not all(a.agrees(b) for a, b in zip(q.factors[:2], rotated.factors[:2], strict=True)):
        raise Mismatch(1, f"both parts of the queries have the same tokens and heads, got {q.text()} and {rotated.text()}")
    labels = ("t", "h", None)
    attributes = {"scale": number(statics, "scale", "latent_attention")}
    return Typing(q, Signature((labels, labels, ("t", None)), labels), attributes)


FUNCTIONS: Mapping[str, Builtin] = {
    "cache_append": Builtin(("cache", "k", "v"), _cache_append, ("[pages, 2, K, E]", "[T, K, E]", "[T, K, E]")),
    "attention": Builtin(("q", "cache"), _attention, ("[T, K, G, E]", "[pages, 2, K, E]"), {"scale": ..., "softcap": 0.0}, windowed=True),
    "sink_attention": Builtin(
        ("q", "cache", "sinks"),
        _sink_attention,
        ("[T, K, G, E]", "[pages, 2, K, E]", "[K, G]"),
        {"scale": ..., "softcap": 0.0},
        windowed=True,
    ),
    "latent_append": Builtin(("cache", "latent", "rotated"), _latent_append, ("[pages, W]", "[T, C]", "[T, R]")),
    "latent_attention": Builtin(
        ("q", "rotated", "cache"), _latent_attention, ("[T, H, C]", "[T, H, R]", "[pages, W]"), {"scale": ...}, windowed=True
    ),
}
