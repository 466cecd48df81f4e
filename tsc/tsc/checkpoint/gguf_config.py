"""config.json out of a GGUF header. Does not: read weights, but for the 32-odd numbers of rope_freqs."""

from __future__ import annotations

from typing import Any

from tsc.checkpoint.architectures import ARCHITECTURES, OF_EXPERTS, OF_SIGMOIDS, Architecture
from tsc.checkpoint.config import MOST_LAYERS, complete, layer_types
from tsc.checkpoint.errors import DAMAGED_GGUF, UNKNOWN_ARCHITECTURE, failure
from tsc.checkpoint.gguf_header import GgufHeader, shortest
from tsc.checkpoint.gguf_rope import rope_scaling
from tsc.diagnostics import near

# config.json's key: the metadata's key under the architecture's prefix
_REQUIRED = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
_OPTIONAL = {
    "intermediate_size": "feed_forward_length",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_SIGMOID = 2  # of expert_gating_func
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message


def architecture_of(header: GgufHeader) -> Architecture:
    """The row of the file's architecture; CompileError when there is none."""
    name = header.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        what = f"has the GGUF architecture `{name}`{near(name, ARCHITECTURES)}; known are {known}"
        raise failure(UNKNOWN_ARCHITECTURE, header.path, what, "use the model's Hugging Face directory")
    if header.own("expert_gating_func") == _SIGMOID and name in OF_SIGMOIDS:
        return OF_SIGMOIDS[name]
    row = OF_EXPERTS.get(name, ARCHITECTURES[name]) if header.own("expert_count", 0) else ARCHITECTURES[name]
    if header.own("expert_count", 0) and "expert_count" not in row.keys.values():
        what = f"is a mixture of {header.own('expert_count')} experts of architecture `{name}`, which is not read from GGUF"
        raise failure(UNKNOWN_ARCHITECTURE, header.path, what, "use the model's Hugging Face directory")
    for key in row.unknown:
        if header.own(key):
            what = f"states `{name}.{key}`, with which the architecture `{name}` is not read"
            raise failure(UNKNOWN_ARCHITECTURE, header.path, what, "use the model's Hugging Face directory")
    return row


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """The configuration that the model's own config.json would hold, as far as the header and llama.cpp's code tell it."""
    row = architecture_of(header)
    config: dict[str, Any] = {"architectures": [row.class_name], "model_type": row.model_type, "rope_theta": 10000.0}
    config |= row.constants
    if row.local_rope_theta is not None:
        config["rope_local_base_freq"] = row.local_rope_theta
    for key, source in {**_REQUIRED, **_OPTIONAL, **row.keys}.items():
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
    if row.is_latent:
        config["head_dim"] = config["qk_rope_head_dim"]
        config["num_key_value_heads"] = config["num_attention_heads"]
    config = complete(config)
    if config["num_hidden_layers"] > MOST_LAYERS or not config["num_attention_heads"]:
        counts = f"{config['num_hidden_layers']} layers and {config['num_attention_heads']} heads"
        raise failure(DAMAGED_GGUF, header.path, f"is damaged: its header states {counts}", "download it again")
    _lengths(header, row, config)
    if "num_nextn_predict_layers" in config:  # which are blocks, too
        config["num_hidden_layers"] -= config["num_nextn_predict_layers"]
    config["vocab_size"] = _vocab_size(header)
    config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in header.tensors
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    config["bos_token_id"] = header.get("tokenizer.ggml.bos_token_id")
    config["pad_token_id"] = header.get("tokenizer.ggml.padding_token_id")
    ends = [end for name in _ENDS if (end := header.get(f"tokenizer.ggml.{name}_token_id")) is not None]
    ends = list(dict.fromkeys(ends))
    config["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    scaling = rope_scaling(header, config)
    config["rope_scaling"] = scaling and {**scaling, **row.scaling}
    _attention_pattern(header, row, config)
    return dict(sorted(config.items()))


def _lengths(header: GgufHeader, row: Architecture, config: dict[str, Any]) -> None:
    """Of a head's keys and values, and of what of it turns."""
    head, turned = config["head_dim"], header.own("rope.dimension_count", config["head_dim"])
    if row.is_latent:
        # A file in which keys and values are not one row yet states their lengths where others state that row's.
        keys = header.own("attention.key_length_mla", header.own("attention.key_length"))
        values = header.own("attention.value_length_mla", header.own("attention.value_length"))
        if not isinstance(keys, int) or not isinstance(values, int) or keys <= turned:
            raise failure(DAMAGED_GGUF, header.path, "does not say how long keys and values are in its header", "convert the model again")
        config["qk_nope_head_dim"], config["v_head_dim"] = keys - turned, values
        config["topk_method"] = "group_limited_greedy" if config.get("n_group", 1) > 1 else "greedy"
        return
    for length, what in ((header.own("attention.value_length", head), "values"), (head if row.turns_a_part else turned, "a rotary part")):
        if length != head:
            message = f"has {what} of length {length} beside keys of length {head}, which is not read from GGUF"
            raise failure(UNKNOWN_ARCHITECTURE, header.path, message)
    if row.turns_a_part:
        config["partial_rotary_factor"] = turned / head
    if "linear_inner_size" in config:
        config["linear_value_head_dim"] = config.pop("linear_inner_size") // config["linear_num_value_heads"]


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
