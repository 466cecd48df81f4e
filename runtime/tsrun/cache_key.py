"""What decides whether a compiled artifact may be used again: the parts of a cache key, and what a miss says about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

Parts = Mapping[str, str]
_NAME_DIGITS = 24
_SHOWN_DIGITS = 12


def key_parts(compiler: Parts, *, checkpoint: str, mesh: str | None, dtype: str | None, target: str) -> dict[str, str]:
    """A whole key: what the compiler contributes (its version, the model file, the config), and what is asked of it."""
    asked = {"checkpoint": checkpoint, "mesh": _plain(mesh), "dtype": _plain(dtype), "target": target}
    return {**compiler, **asked}


def entry_name(parts: Parts) -> str:
    """The name of the entry with this key."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:_NAME_DIGITS]


def miss_line(wanted: Parts, entries: Iterable[Parts]) -> str:
    """Why nothing fits, in one line: the nearest entry is the one with the most parts in common."""
    nearest = max(entries, key=lambda parts: len(wanted.items() & parts.items()), default=None)
    if nearest is None:
        return "compile cache: miss, there are no entries yet"
    differing = [name for name in {**wanted, **nearest} if wanted.get(name) != nearest.get(name)]
    told = ", ".join(f"{name} ({_short(nearest.get(name))} there, {_short(wanted.get(name))} here)" for name in differing)
    return f"compile cache: miss, the nearest entry differs in {told}"


def _plain(option: str | None) -> str:
    return "default" if option is None else option.replace(" ", "")


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:_SHOWN_DIGITS] if len(value) == 64 else value
