"""Deterministic JSON that a person can read: what fits on a line is on one line."""

from __future__ import annotations

import json
from typing import Any

_WIDTH = 140


def dumps(value: Any) -> str:
    """`value` as JSON with a final newline. Keys keep their order. ValueError for NaN and infinities, TypeError for what JSON lacks."""
    return _text(value, 0, "") + "\n"


def _text(value: Any, depth: int, label: str) -> str:
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list | tuple) or len(label) + len(line) + 2 * depth <= _WIDTH:
        return line
    inner = "\n" + "  " * (depth + 1)
    end = "\n" + "  " * depth
    if isinstance(value, dict):
        labels = {key: json.dumps(str(key), ensure_ascii=False) + ": " for key in value}
        return "{" + inner + ("," + inner).join(labels[k] + _text(v, depth + 1, labels[k]) for k, v in value.items()) + end + "}"
    return "[" + inner + ("," + inner).join(_text(v, depth + 1, "") for v in value) + end + "]"
