"""What each token adds to a text, in bytes: what a grammar is matched with."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """By id: the bytes of each token, none where there is no such token. special: those that no text has."""

    of: Sequence[bytes]
    special: Collection[int]


def token_bytes(words: Sequence[str], added: Collection[int], decoder: Any) -> Sequence[bytes] | None:
    """The bytes of a tokenizer's words, by its decoder as tokenizer.json states it; None where that is of another kind.

    added: the ids of tokens that stand for themselves.
    """
    parts = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        table = _byte_of_letter()
        return [word.encode() if i in added else bytes(table[letter] for letter in word) for i, word in enumerate(words)]
    if not kinds & {"ByteFallback", "Metaspace", "Fuse"}:
        return None
    replaced = [(part["pattern"].get("String"), part["content"]) for part in parts if part["type"] == "Replace"]
    replaced += [(part["replacement"], " ") for part in parts if part["type"] == "Metaspace"]

    def decoded(word: str) -> bytes:
        byte = _BYTE.fullmatch(word) if "ByteFallback" in kinds else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        for sign, content in replaced:
            word = word.replace(sign, content) if sign else word
        return word.encode()

    return [word.encode() if i in added else decoded(word) for i, word in enumerate(words)]


def _byte_of_letter() -> dict[str, int]:
    """As byte-level tokenizers write bytes: those that can be seen as themselves, the others as letters from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in seen}
    hidden = (byte for byte in range(256) if byte not in seen)
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}
