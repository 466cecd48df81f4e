"""config.json out of a GGUF header. Does not: read weights, but for the 32-odd numbers of rope_freqs."""

from __future__ import annotations

import struct
from typing import Any

from tsc.checkpoint.architectures import ARCHITECTURES, Architecture
from tsc.checkpoint.config import MOST_LAYERS, complete, layer_types
from tsc.checkpoint.errors import DAMAGED_GGUF, UNKNOWN_ARCHITECTURE, failure
from tsc.checkpoint.gguf_header import GgufHeader
from tsc.checkpoint.gguf_rope import rope_scaling
from tsc.diagnostics import near

# config.json's key: the metadata's key under the architecture's prefix
_REQUIRED = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message


def architecture_of(header: GgufHeader) -> Architecture:
    """The row of the file's architecture; CompileError when there is none."""
    name = header.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        what = f"has the GGUF architecture `{name}`{near(name, ARCHITECTURES)}; known are {known}"
        raise failure(UNKNOWN_ARCHITECTURE, header.path, what, "use the model's Hugging Face directory")
    if header.own("expert_count", 0):
        what = f"is a mixture of {header.own('expert_count')} experts of architecture `{name}`, which is not read from GGUF"
        raise failure(UNKNOWN_ARCHITECTURE, header.path, what, "use the model's Hugging Face directory")
    return ARCHITECTURES[name]


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """The configuration that the model's own config.json would hold, as far as the header and llama.cpp's code tell it."""
    row = architecture_of(header)
    config: dict[str, Any] = {"architectures": [row.class_name], "model_type": row.model_type, "rope_theta": 10000.0}
    config |= row.constants
    if row.local_rope_theta is not None:
        config["rope_local_base_freq"] = row.local_rope_theta
    for key, source in (_REQUIRED | _OPTIONAL).items():
        value = header.own(source)
        if value is None and key in _REQUIRED:
            raise failure(DAMAGED_GGUF, header.path, f"has no `{header.architecture}.{source}` in its header")
        if isinstance(value, list):
            if len(set(value)) != 1:
                what = f"has layers of different `{source}`, which is not read from GGUF"
                raise failure(UNKNOWN_ARCHITECTURE, header.path, what)
            value = value[0]
        if value is not None:
            config[key] = shortest(value) if isinstance(value, float) else value
    config = complete(config)
    if config["num_hidden_layers"] > MOST_LAYERS or not config["num_attention_heads"]:
        counts = f"{config['num_hidden_layers']} layers and {config['num_attention_heads']} heads"
        raise failure(DAMAGED_GGUF, header.path, f"is damaged: its header states {counts}", "download it again")
    for source, what in (("attention.value_length", "values"), ("rope.dimension_count", "a rotary part")):
        if (length := header.own(source, config["head_dim"])) != config["head_dim"]:
            message = f"has {what} of length {length} beside keys of length {config['head_dim']}, which is not read from GGUF"
            raise failure(UNKNOWN_ARCHITECTURE, header.path, message)
    config["vocab_size"] = _vocab_size(header)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    config["bos_token_id"] = header.get("tokenizer.ggml.bos_token_id")
    config["pad_token_id"] = header.get("tokenizer.ggml.padding_token_id")
    ends = [end for name in _ENDS if (end := header.get(f"tokenizer.ggml.{name}_token_id")) is not None]
    ends = list(dict.fromkeys(ends))
    config["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    config["rope_scaling"] = rope_scaling(header, config)
    _attention_pattern(header, row, config)
    return dict(sorted(config.items()))


def shortest(value: float) -> float:
    """The shortest decimal that gives the same f32: 1e-06 for 9.999999974752427e-07, as the model's author wrote it."""
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def _vocab_size(header: GgufHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else header.length("tokenizer.ggml.tokens") or int(header.own("vocab_size", 0))


def _attention_pattern(header: GgufHeader, row: Architecture, config: dict[str, Any]) -> None:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    if row.wide_layers:
        wide = layers == row.wide_layers
        config["query_pre_attn_scalar"] = config["hidden_size"] // heads if wide else config["head_dim"]
    if row.window_pattern:
        pattern = header.own("attention.sliding_window_pattern", row.window_pattern)
        sliding = [bool(p) for p in pattern] if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(layers)]
        config["layer_types"] = layer_types(sliding)
        if isinstance(pattern, int):
            config["sliding_window_pattern"] = pattern
