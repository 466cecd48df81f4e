"""A tiny Llama checkpoint with a tokenizer, as a directory that the commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 299,
}


def tensors(config: dict[str, object], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a Llama with this config, in bf16."""
    generator = torch.Generator().manual_seed(seed)
    size = {k: v for k, v in config.items() if isinstance(v, int)}
    d, e, f, v = size["hidden_size"], size["head_dim"], size["intermediate_size"], size["vocab_size"]
    q, kv = size["num_attention_heads"] * e, size["num_key_value_heads"] * e

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.3).to(torch.bfloat16)

    found = {"model.embed_tokens.weight": random(v, d), "model.norm.weight": random(d), "lm_head.weight": random(v, d)}
    for i in range(size["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        found[layer + "input_layernorm.weight"] = random(d)
        found[layer + "post_attention_layernorm.weight"] = random(d)
        for name, rows, columns in (
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", f, d),
            ("mlp.up_proj", f, d),
            ("mlp.down_proj", d, f),
        ):
            found[f"{layer}{name}.weight"] = random(rows, columns)
    return found


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """config.json, model.safetensors and a byte-level tokenizer of 300 tokens."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(CONFIG, seed), folder / "model.safetensors")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=299, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and the other dogs"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": None, "bos_token": None}))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny-llama")
