"""Checkpoints of several models, one of them a text decoder: its configuration and tensors are found however they are nested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

from tsc.checkpoint import load_config
from tsc.checkpoint.text_part import DEFAULTS, text_part

_OF_A_DECODER = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
)
_SEVERAL = {"vision_config": {"hidden_size": 8}}


@pytest.mark.parametrize(
    ("layers", "head", "others"),
    [
        ("language_model.model.", "language_model.lm_head.", ("vision_tower.encoder.layers.0.w", "mm_projector.proj.0.weight")),
        ("model.language_model.", "lm_head.", ("model.vision_tower.layers.0.w", "model.multi_modal_projector.w")),
        ("language_model.", "lm_head.", ("visual.layers.0.w", "projector.w")),
        ("model.language_model.model.", "model.language_model.lm_head.", ("model.visual.layers.0.w", "model.audio.w")),
        ("model.text_model.", "lm_head.", ("model.vision_model.layers.0.w", "model.connector.w")),
        ("model.", "lm_head.", ("visual.layers.0.w", "audio_tower.w")),
    ],
)
def test_the_decoder_is_found_under_any_prefix_and_the_rest_left_out(layers: str, head: str, others: tuple[str, str]) -> None:
    stored = [n.replace("model.", layers, 1) if n.startswith("model.") else n.replace("lm_head.", head) for n in _OF_A_DECODER]
    part = text_part(_SEVERAL, [*others, *stored])
    assert [part.name(name) for name in stored] == list(_OF_A_DECODER)
    assert [part.name(name) for name in others] == [None, None]
    assert sum(part.left_out([*others, *stored]).values()) == 2
    assert all(any(other.startswith(name) for other in others) for name in part.left_out(others))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_of_a_decoder_alone_nothing_is_left_out(prefix: str) -> None:
    names = [n.replace("model.", prefix, 1) for n in _OF_A_DECODER] + [f"{prefix}something.else"]
    part = text_part({}, names)
    assert [part.name(name) for name in names] == [*_OF_A_DECODER, "model.something.else"]
    assert text_part({}, ["model.layers.0.w", "mtp.layer.w"]).name("mtp.layer.w") == "mtp.layer.w"


@pytest.mark.parametrize(
    ("text", "outer", "expected"),
    [
        (
            {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2},
            {"model_type": "gemma3", "eos_token_id": [1, 106]},
            {
                "model_type": "gemma3_text",
                "architectures": ["Gemma3ForCausalLM", "SomeForConditionalGeneration"],
                "tie_word_embeddings": True,
                "eos_token_id": [1, 106],
                "head_dim": 256,
                "layer_types": ["sliding_attention"] * 2,
            },
        ),
        (
            {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"], "quantization_config": {"format": "pack-quantized"}},
            {"model_type": "kimi_k25", "tie_word_embeddings": False, "quantization_config": None},
            {
                "model_type": "kimi_k2",
                "architectures": ["DeepseekV3ForCausalLM", "SomeForConditionalGeneration"],
                "quantization_config": {"format": "pack-quantized"},
            },
        ),
        (
            {"model_type": "mistral", "hidden_size": 64, "bos_token_id": None, "sliding_window": None, "rope_theta": 1e9},
            {"model_type": "mistral3", "bos_token_id": 1},
            {"bos_token_id": 1, "sliding_window": None, "num_key_value_heads": 8, "rope_theta": 1e9},
        ),
    ],
)
@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_a_nested_config_is_the_decoders(
    key: str, text: dict[str, Any], outer: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = {"architectures": ["SomeForConditionalGeneration"], **outer, key: text, "vision_config": {"num_hidden_layers": 27}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, _ = load_config(tmp_path)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("model_type", "of"), [("llama", LlamaConfig), ("mistral", MistralConfig), ("gemma3_text", Gemma3TextConfig)])
def test_defaults_are_those_of_transformers(model_type: str, of: Any) -> None:
    theirs = of().to_dict()
    assert {key: theirs[key] for key in DEFAULTS[model_type]} == DEFAULTS[model_type]
