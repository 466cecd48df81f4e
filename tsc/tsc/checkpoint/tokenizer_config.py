"""tokenizer_config.json: the few facts that a runtime needs beside tokenizer.json, always under the same keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ALWAYS: Mapping[str, Any] = {"add_bos_token": False, "add_eos_token": False, "bos_token": None, "eos_token": None, "chat_template": None}


def config_bytes(values: Mapping[str, Any]) -> bytes:
    """Deterministic, readable JSON with every key that is always there."""
    return (json.dumps({**_ALWAYS, **values}, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
