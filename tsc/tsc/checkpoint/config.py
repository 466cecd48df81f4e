"""A model's configuration in the shape of config.json. Imports neither torch nor gguf: `tsc check` starts here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsc.checkpoint.errors import NOT_A_CHECKPOINT, NOT_JSON, failure
from tsc.checkpoint.text_part import decoder_config
from tsc.diagnostics import CompileError, Diagnostic

_MAGIC = b"GGUF"
MOST_LAYERS = 4096
"""Of a model: a number of more is a mistake, and whatever has something for each layer would take for ever."""


def load_config(path: Path | str) -> tuple[dict[str, Any], str]:
    """The configuration of a checkpoint and its SHA-256, from a directory, a config.json or a .gguf (of which only the header is read).

    The digest is that of config.json's bytes; for a GGUF that of the configuration made from it. Raises CompileError.
    """
    source = Path(path)
    if is_gguf(source):
        from tsc.checkpoint.gguf_config import gguf_config
        from tsc.checkpoint.gguf_header import GgufHeader

        config = gguf_config(GgufHeader(source))
        return config, config_digest(config)
    file = source / "config.json" if source.is_dir() else source
    data = read_file(file)
    config = decoder_config(parse_json(file, data))
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        what = f"{file}: `num_hidden_layers` is {layers:,}, and a model has at most {MOST_LAYERS:,} layers"
        raise CompileError(Diagnostic("TS0210", what, fixes=("give the config that the model was trained with",)))
    return complete(config), hashlib.sha256(data).hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration that has no file of its own."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def is_gguf(path: Path) -> bool:
    """Whether a path is to be read as GGUF: by its name, or by its first bytes when the name says nothing."""
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.name == "config.json" and path.parent.is_dir():
            what, fix = "has no config.json", "give the directory that from_pretrained would take, or a .gguf file"
            raise failure(NOT_A_CHECKPOINT, path.parent, what, fix) from None
        raise failure(NOT_A_CHECKPOINT, path, "there is no such file") from None
    except OSError as error:
        raise failure(NOT_A_CHECKPOINT, path, f"cannot be read: {error.strerror}") from None


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; `path` is named in the error."""
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise failure(NOT_JSON, path, f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise failure(NOT_JSON, path, "is not JSON: it is not UTF-8") from None
    if not isinstance(value, dict):
        raise failure(NOT_JSON, path, f"holds a JSON {type(value).__name__}; an object is expected")
    return value


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add what Hugging Face's classes fill in, so that a key has one name whichever release wrote the file.

    What is stated stays, with one exception: a `sliding_window` that `use_sliding_window: false` switches off is null.
    """
    result = dict(config)
    model_type = str(result.get("model_type", ""))
    heads, layers = result.get("num_attention_heads"), result.get("num_hidden_layers")
    if heads and result.get("num_key_value_heads") is None:
        result["num_key_value_heads"] = heads
    if isinstance(heads, int) and heads > 0 and result.get("head_dim") is None and isinstance(result.get("hidden_size"), int):
        result["head_dim"] = result["hidden_size"] // heads
    result.setdefault("tie_word_embeddings", model_type.startswith("gemma"))
    if result.get("use_sliding_window") is False:
        result["sliding_window"] = None
    _unnest_rope(result)
    if model_type.startswith("gemma3"):
        result.setdefault("rope_local_base_freq", 10000.0)
    pattern = (
        result.get("sliding_window_pattern") or result.get("_sliding_window_pattern") or {"gemma2": 2, "gemma3_text": 6}.get(model_type)
    )
    if isinstance(pattern, int) and isinstance(layers, int) and "layer_types" not in result:
        result["layer_types"] = layer_types([(i + 1) % pattern != 0 for i in range(layers)])
    return result


def layer_types(sliding: list[bool]) -> list[str]:
    return ["sliding_attention" if s else "full_attention" for s in sliding]


def _unnest_rope(config: dict[str, Any]) -> None:
    # Release 5 writes rope_parameters; everything before it wrote rope_theta, rope_local_base_freq and rope_scaling.
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict):
        local = parameters.get("sliding_attention")
        full = parameters.get("full_attention", parameters)
        if isinstance(local, dict) and "rope_theta" in local:
            config.setdefault("rope_local_base_freq", local["rope_theta"])
        if isinstance(full, dict):
            if "rope_theta" in full:
                config.setdefault("rope_theta", full["rope_theta"])
            if full.get("rope_type", "default") != "default":
                config.setdefault("rope_scaling", {k: v for k, v in full.items() if k != "rope_theta"})
    scaling = config.setdefault("rope_scaling", None)
    if isinstance(scaling, dict) and "type" in scaling:
        scaling = {"rope_type": scaling["type"]} | {k: v for k, v in scaling.items() if k != "type"}
    if isinstance(scaling, dict):
        config["rope_scaling"] = _complete_scaling(scaling, config)


def _complete_scaling(scaling: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """With the length of the training, and the factor that follows from it. Phi-3 has the length beside the object, and that one counts;
    of `dynamic`, the longest length is that of the training."""
    result = dict(scaling)
    if result.get("rope_type") == "su":  # what longrope was called first
        result["rope_type"] = "longrope"
    kind, longest = result.get("rope_type"), config.get("max_position_embeddings")
    if kind == "dynamic" and longest:
        result["original_max_position_embeddings"] = longest
    elif kind in ("llama3", "yarn", "longrope"):
        original = config.get("original_max_position_embeddings") or result.get("original_max_position_embeddings") or longest
        if original:
            result["original_max_position_embeddings"] = original
        if original and longest and kind != "llama3" and result.get("factor") is None:
            result["factor"] = longest / original
    return result


def depends_on_length(config: Mapping[str, Any]) -> bool:
    """Whether the rope scaling is another for longer sequences."""
    scaling = config.get("rope_scaling")
    return isinstance(scaling, dict) and scaling.get("rope_type") in ("longrope", "dynamic")


def longest_sequence(config: Mapping[str, Any], context: int | None) -> int | None:
    """How many tokens a sequence may have: as many as the config says, or, where its rope scaling depends on that, as `context` says."""
    longest = context if context and depends_on_length(config) else config.get("max_position_embeddings")
    return None if longest is None else int(longest)


def for_sequences_of(config: Mapping[str, Any], context: int | None) -> dict[str, Any]:
    """The configuration that a model is elaborated with: in a rope scaling that depends on it the longest sequence is stated."""
    if not depends_on_length(config):
        return dict(config)
    return dict(config) | {"rope_scaling": config["rope_scaling"] | {"longest_sequence": longest_sequence(config, context)}}
