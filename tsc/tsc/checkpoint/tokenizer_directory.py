"""The tokenizer of a Hugging Face directory: tokenizer.json as it is, and one configuration out of up to four files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tsc.checkpoint.config import parse_json, read_file
from tsc.checkpoint.errors import UNKNOWN_TOKENIZER, failure
from tsc.checkpoint.tokenizer_config import config_bytes

_OTHER_FORMATS = ("tokenizer.model", "vocab.json", "tekken.json", "tiktoken.model")


def directory_tokenizer(source: Path, bos: int | None, eos: int | None) -> dict[str, bytes]:
    """The two files, or nothing for a directory without any tokenizer. `bos` and `eos` serve where no file spells the tokens."""
    path = source / "tokenizer.json"
    if not path.exists():
        if (other := next((n for n in _OTHER_FORMATS if (source / n).exists()), None)) is None:
            return {}
        what = f"has {other} but no tokenizer.json"
        raise failure(UNKNOWN_TOKENIZER, source, what, f"AutoTokenizer.from_pretrained('{source}').save_pretrained('{source}') writes one")
    data = read_file(path)
    parse_json(path, data)
    config = _optional(source / "special_tokens_map.json") | _optional(source / "tokenizer_config.json")
    config = {key: _text(value) if key.endswith("_token") else value for key, value in config.items()}
    config["chat_template"] = _chat_template(source, config.get("chat_template"))
    _fill_from_tokenizer(path, data, config, {"bos_token": bos, "eos_token": eos})
    return {"tokenizer.json": data, "tokenizer_config.json": config_bytes(config)}


def _optional(path: Path) -> dict[str, Any]:
    return parse_json(path, read_file(path)) if path.exists() else {}


def _text(value: Any) -> Any:
    # Until release 5 a token was written as an object: {"__type": "AddedToken", "content": "<s>", ...}
    return value.get("content") if isinstance(value, dict) else value


def _chat_template(source: Path, stated: Any) -> str | None:
    file = source / "chat_template.jinja"
    if file.exists():
        return read_file(file).decode("utf-8", "replace")
    stated = _optional(source / "chat_template.json").get("chat_template", stated)
    if isinstance(stated, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in stated}
        return named.get("default")
    return stated if isinstance(stated, str) else None


def _fill_from_tokenizer(path: Path, data: bytes, config: dict[str, Any], ids: dict[str, int | None]) -> None:
    if all(config.get(key) is not None for key in ids) and config.get("add_bos_token") is not None:
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise failure(UNKNOWN_TOKENIZER, path, f"is not read by the installed tokenizers: {json.dumps(str(error))}") from None
    for key, token in ids.items():
        if config.get(key) is None and token is not None:
            config[key] = tokenizer.id_to_token(token)
    if config.get("add_bos_token") is None:
        # The file's own post-processor decides: what does it put before nothing?
        first = tokenizer.encode("").tokens[:1]
        config["add_bos_token"] = bool(first) and first[0] == config.get("bos_token")
