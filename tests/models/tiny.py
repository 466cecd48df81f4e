"""Small random checkpoints in which every number counts: wide weights, norms that are not ones, heads that do not divide the width."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM

from tsc.request import Cache

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rms_norm_eps": 0.05,
}
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_LINEAR = _DEFAULT | {"rope_type": "linear", "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
_UNSCALED = _GEMMA_ROPE | {"full_attention": _GEMMA_ROPE["full_attention"] | {"factor": 1.0}}
_ONE_THETA = {kind: rope | {"rope_theta": 1000.0} for kind, rope in _GEMMA_ROPE.items()}
_KINDS = ["sliding_attention", "full_attention"]


_MOE: dict[str, Any] = {"moe_intermediate_size": 24, "num_experts_per_tok": 3}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}
_DEEPSEEK: dict[str, Any] = _MOE | {
    "head_dim": 8,  # of rope
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "q_lora_rank": 20,
    "kv_lora_rank": 28,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
    "rope_parameters": _YARN,
}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": False,
    "attention_factor": 0.8,
}
_GPT_OSS: dict[str, Any] = {
    "hidden_size": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "sliding_window": 6,
    "swiglu_limit": 1.5,
    "rope_parameters": _GPT_OSS_ROPE,
}
_QWEN3_NEXT: dict[str, Any] = _MOE | {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "num_experts": 8,
    "norm_topk_prob": True,
    "shared_expert_intermediate_size": 20,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": _DEFAULT | {"partial_rotary_factor": 0.25},
}


_V2: dict[str, Any] = {key: value for key, value in _DEEPSEEK.items() if key != "rope_parameters"}
_V2_YARN = _YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}
_GLM: dict[str, Any] = _MOE | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5, "n_shared_experts": 1}
_LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.2, 1.5, 2.0, 3.0, 5.0, 8.0],
    "partial_rotary_factor": 0.75,
}
_PHI3: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "pad_token_id": 0}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}


@dataclass(frozen=True)
class Case:
    """A configuration, and changes to it that must each show in the logits: a test that could not see them would prove nothing.

    context: what it is compiled for, where rope depends on that; shortest: the fewest tokens for which transformers turns as then.
    variant: of an architecture that another case is for, too, so that the everyday run does without it."""

    name: str
    config_class: Any
    settings: dict[str, Any] = field(default_factory=dict)
    changes: tuple[dict[str, Any], ...] = ()
    context: int | None = None
    shortest: int = 1
    variant: bool = False

    @property
    def config(self) -> Any:
        return self.changed()

    def changed(self, **change: Any) -> Any:
        """The configuration with other settings; the classes write into what they are given."""
        return self.config_class(**deepcopy(_SIZES | self.settings | change))

    @property
    def architectures(self) -> list[str]:
        """As the checkpoint's config.json names them."""
        return [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.config_class.model_type]]

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)


_EPS = {"rms_norm_eps": 1e-6}
CASES = (
    Case("llama", LlamaConfig, {"rope_parameters": _DEFAULT}, (_EPS, {"rope_parameters": _LINEAR})),
    Case("llama_tied", LlamaConfig, {"tie_word_embeddings": True, "head_dim": None, "num_key_value_heads": 8}, variant=True),
    Case("llama_biased", LlamaConfig, {"attention_bias": True}, variant=True),
    Case("llama_linear", LlamaConfig, {"rope_parameters": _LINEAR}, ({"rope_parameters": _DEFAULT},), variant=True),
    Case("llama_llama3", LlamaConfig, {"rope_parameters": _LLAMA3}, ({"rope_parameters": _LLAMA3 | {"rope_type": "default"}},)),
    Case("llama_yarn", LlamaConfig, {"rope_parameters": _YARN}, ({"rope_parameters": _YARN | {"factor": 2.0}},), variant=True),
    Case(
        "llama_dynamic",
        LlamaConfig,
        {"rope_parameters": _DYNAMIC, "max_position_embeddings": 16},
        ({"rope_parameters": _DYNAMIC | {"factor": 6.0}}, {"rope_parameters": _DEFAULT}),
        context=60,
        shortest=16,
        variant=True,
    ),
    Case("llama_one_kv", LlamaConfig, {"num_key_value_heads": 1}, variant=True),
    Case("mistral", MistralConfig, {"sliding_window": 7}, ({"sliding_window": None}, {"sliding_window": 8})),
    Case(
        "mixtral",
        MixtralConfig,
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24, "sliding_window": 9},
        (_EPS, {"num_experts_per_tok": 3}, {"sliding_window": 8}),
    ),
    Case(
        "qwen2",
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        (_EPS, {"use_sliding_window": False}, {"sliding_window": 7}, {"max_window_layers": 2}),
    ),
    Case("qwen2_whole", Qwen2Config, {"tie_word_embeddings": True, "head_dim": 6, "sliding_window": 6}, variant=True),
    Case("qwen3", Qwen3Config, {"num_hidden_layers": 4}, (_EPS,)),
    Case("qwen3_tied", Qwen3Config, {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_parameters": _LINEAR}, variant=True),
    Case(
        "gemma2",
        Gemma2Config,
        {
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
            "sliding_window": 6,
            "query_pre_attn_scalar": 40,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 8.0,
        },
        (
            _EPS,
            {"sliding_window": 7},
            {"query_pre_attn_scalar": 16},
            {"attn_logit_softcapping": None},
            {"attn_logit_softcapping": 2.0},
            {"final_logit_softcapping": 12.0},
        ),
    ),
    Case(
        "gemma3",
        Gemma3TextConfig,
        {
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
            "sliding_window": 6,
            "layer_types": [_KINDS[0], _KINDS[0], _KINDS[1], _KINDS[0]],
            "query_pre_attn_scalar": 40,
            "rope_parameters": _GEMMA_ROPE,
        },
        (
            _EPS,
            {"sliding_window": 256},
            {"sliding_window": 7},
            {"layer_types": [_KINDS[0], _KINDS[1], _KINDS[0], _KINDS[0]]},
            {"query_pre_attn_scalar": 16},
            {"rope_parameters": _UNSCALED},
            {"rope_parameters": _ONE_THETA},
        ),
    ),
    Case(
        "qwen3_moe",
        Qwen3MoeConfig,
        _MOE | {"num_experts": 8, "norm_topk_prob": True},
        (_EPS, {"num_experts_per_tok": 2}, {"norm_topk_prob": False}),
    ),
    Case(
        "qwen3_next",
        Qwen3NextConfig,
        _QWEN3_NEXT,
        (
            _EPS,
            {"num_experts_per_tok": 2},
            {"norm_topk_prob": False},
            {"rope_parameters": _DEFAULT | {"partial_rotary_factor": 1.0}},
            {"rope_parameters": _DEFAULT | {"rope_theta": 50.0, "partial_rotary_factor": 0.25}},
        ),
    ),
    Case(
        "deepseek_v3",
        DeepseekV3Config,
        _DEEPSEEK,
        (
            _EPS,
            {"num_experts_per_tok": 2},
            {"norm_topk_prob": False},
            {"routed_scaling_factor": 1.0},
            {"n_group": 1, "topk_group": 1},
            {"topk_group": 1},
            {"rope_interleave": False},
            {"rope_parameters": _DEFAULT},
            {"rope_parameters": _YARN | {"mscale_all_dim": 0.5}},
            {"rope_parameters": _YARN | {"factor": 2.0}},
        ),
    ),
    Case(
        "deepseek_v3_direct",
        DeepseekV3Config,
        _DEEPSEEK | {"q_lora_rank": None, "rope_parameters": _DEFAULT, "n_shared_experts": 2},
        variant=True,
    ),
    Case(
        "kimi_k2",
        DeepseekV3Config,
        _DEEPSEEK | {"n_group": 1, "topk_group": 1, "n_routed_experts": 12, "rope_parameters": _YARN | {"mscale_all_dim": 1.0}},
    ),
    Case(
        "deepseek_v2",
        DeepseekV2Config,
        _V2 | {"topk_method": "group_limited_greedy", "rope_parameters": _V2_YARN},
        (
            _EPS,
            {"topk_method": "greedy"},
            {"topk_group": 1},
            {"routed_scaling_factor": 1.0},
            {"rope_parameters": _V2_YARN | {"mscale_all_dim": 0.5}},
        ),
    ),
    Case(
        "deepseek_v2_lite",
        DeepseekV2Config,
        _V2 | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 2},
        variant=True,
    ),
    Case(
        "glm4_moe",
        Glm4MoeConfig,
        _GLM | {"attention_bias": True, "use_qk_norm": True, "first_k_dense_replace": 1, "rope_parameters": _DEFAULT},
        (_EPS, {"num_experts_per_tok": 2}, {"topk_group": 1}, {"rope_parameters": _DEFAULT | {"partial_rotary_factor": 1.0}}),
    ),
    Case("glm4_moe_plain", Glm4MoeConfig, _GLM | {"norm_topk_prob": False, "n_group": 1, "topk_group": 1}, variant=True),
    Case(
        "phi3",
        Phi3Config,
        _PHI3 | {"original_max_position_embeddings": 12, "rope_parameters": _LONGROPE, "sliding_window": 9},
        (
            _EPS,
            {"sliding_window": 8},
            {"rope_parameters": _LONGROPE | {"long_factor": _LONGROPE["short_factor"]}},
            {"rope_parameters": _LONGROPE | {"attention_factor": 1.0}},
            {"original_max_position_embeddings": 64},
        ),
        shortest=13,
    ),
    Case(
        "phi3_short",
        Phi3Config,
        _PHI3 | {"original_max_position_embeddings": 64, "rope_parameters": _LONGROPE, "tie_word_embeddings": True},
        ({"rope_parameters": _LONGROPE | {"short_factor": _LONGROPE["long_factor"]}},),
        context=64,
        variant=True,
    ),
    Case("phi3_4k", Phi3Config, _PHI3 | {"rope_parameters": _DEFAULT}, variant=True),
    Case("olmo2", Olmo2Config, {"num_key_value_heads": 4}, (_EPS,)),
    Case("olmo2_one_kv", Olmo2Config, {"num_key_value_heads": 1, "tie_word_embeddings": True}, variant=True),
    Case(
        "gemma3_one_kv",
        Gemma3TextConfig,
        {"num_hidden_layers": 6, "num_key_value_heads": 1, "sliding_window": 5, "head_dim": 24},
        variant=True,
    ),
    Case(
        "gpt_oss",
        GptOssConfig,
        _GPT_OSS,
        (
            _EPS,
            {"num_experts_per_tok": 2},
            {"sliding_window": 7},
            {"layer_types": [_KINDS[1], _KINDS[0], _KINDS[1]]},
            {"swiglu_limit": 7.0},
            {"swiglu_alpha": 1.0},
            {"rope_parameters": _GPT_OSS_ROPE | {"truncate": True}},
            {"rope_parameters": _GPT_OSS_ROPE | {"factor": 2.0}},
        ),
    ),
)


_ZERO_CENTRED = (Gemma2Config, Gemma3TextConfig, Qwen3NextConfig)
"""Their norms multiply by one more than the weight."""


def make(case: Case) -> Any:
    """A transformers model with seeded weights wide enough for logits to spread, in float32."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(case.config, attn_implementation="eager").float().eval()
    for name, parameter in model.named_parameters():
        # The default of ones (Gemma: zeros) would hide a norm that is forgotten, or its offset.
        mean = 0.0 if "norm" not in name or case.config_class in _ZERO_CENTRED else 1.0
        torch.nn.init.normal_(parameter, mean, 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer, 0.0, 0.3)
    if case.context is not None:  # of dynamic ropes transformers keeps the angles of the longest sequence that it has seen
        with torch.inference_mode():
            model(torch.zeros(1, case.context, dtype=torch.int64))
    return model


def changed(model: Any, case: Case, change: dict[str, Any]) -> Any:
    """The same weights under another configuration."""
    other = AutoModelForCausalLM.from_config(case.changed(**change), attn_implementation="eager").float().eval()
    other.load_state_dict(model.state_dict())
    return other


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, int(_SIZES["vocab_size"]), (length,), generator=generator).tolist()
    return ids


class TinyModels:
    """Makes each model, checkpoint and artifact once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[str, Any] = {}

    def model(self, case: Case) -> Any:
        if case.name not in self._models:
            self._models[case.name] = make(case)
        return self._models[case.name]

    def checkpoint(self, case: Case) -> Path:
        path = self._folder / case.name
        if not path.exists():
            self.model(case).save_pretrained(path)
        return path

    def artifact(self, case: Case, tp: int = 1, dtype: str = "f32", target: str = "cpu", cache: Cache = "dtype") -> Path:
        from tests.models.running import compiled

        path = self._folder / f"{case.name}-{tp}-{dtype}-{target}-{cache}.tsa"
        if not path.exists():
            compiled(self.checkpoint(case), path, tp=tp, dtype=dtype, target=target, cache=cache, context=case.context)
        return path


BY_NAME = {case.name: case for case in CASES}
