"""A tiny Llama in every format that a checkpoint has. Made without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (64, 32),
    LAYER + "self_attn.q_proj.weight": (32, 32),
    LAYER + "self_attn.k_proj.weight": (8, 32),
    LAYER + "self_attn.v_proj.weight": (8, 32),
    LAYER + "self_attn.o_proj.weight": (32, 32),
    LAYER + "mlp.gate_proj.weight": (64, 32),
    LAYER + "mlp.up_proj.weight": (64, 32),
    LAYER + "mlp.down_proj.weight": (32, 64),
    LAYER + "input_layernorm.weight": (32,),
    LAYER + "post_attention_layernorm.weight": (32,),
    "model.norm.weight": (32,),
}


def write_checkpoint(path: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES, kind: str = "F32", **changes: Any) -> None:
    """A Hugging Face directory; a tensor that is not f32 has zeros of one byte an element."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | changes, indent=2))
    header, data = {}, b""
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32).tobytes() if kind == "F32" else bytes(math.prod(shape))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_gguf(
    path: Path, architecture: str = "llama", rope: str | None = None, tokenizer: str | None = None, extra: str | None = None, parts: int = 1
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {
        "context_length": 128,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 64,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "attention.key_length": 4,
        "attention.value_length": 4,
    }.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    if rope is not None:
        writer.add_string(f"{architecture}.rope.scaling.type", rope)
    if tokenizer is not None:
        writer.add_string("tokenizer.ggml.model", tokenizer)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    if parts > 1:
        writer.add_uint16("split.count", parts)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, shape in SHAPES.items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        writer.add_tensor(stored, np.ones(shape, dtype=np.float32))
    if extra is not None:
        writer.add_tensor(extra, np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
