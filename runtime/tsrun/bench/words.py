"""Text of so many tokens, about: words that a tokenizer has seen, drawn at random, so that no part of it is found elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

import numpy as np


@cache
def _words() -> list[str]:
    return (files("tsrun.bench") / "words.txt").read_text().split()


def generator(*parts: object) -> np.random.Generator:
    """Random numbers that follow from the parts alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def text(words: int, *parts: object) -> str:
    """So many words, eight to sixteen a line."""
    random = generator("text", *parts)
    known = _words()
    drawn = random.integers(0, len(known), words)
    lengths = random.integers(8, 17, words // 8 + 1)
    lines, begin = [], 0
    for length in lengths:
        if begin >= words:
            break
        lines.append(" ".join(known[i] for i in drawn[begin : begin + length]))
        begin += int(length)
    return "\n".join(lines)
