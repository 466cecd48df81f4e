"""The GGUF architectures that are read: one row each, stating only what the converter dropped or changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Made = Literal["columns", "conv", "decay_rate", "gate_up", "gate_up_bias", "grouped", "latent_up", "row"]
"""How a tensor is made of others (`gguf_recipes.py`)."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family as llama.cpp's converter leaves it.

    `modules`: of a layer, by the names of Hugging Face; `#` stands for each expert, which GGUF stacks.
    `tensors`: of a layer, that are no module's weight or bias: by name, GGUF's.
    `made`: of a layer, that are made of others: by name, how and of what.
    `keys`: of config.json, by the metadata's under the architecture's prefix.
    `permuted`: rows of q and k are stored pairwise, for interleaved rotation.
    `norm_offset`: what was added to the norms' weights, but for those of `plain_norms`.
    `window_pattern`: one layer in so many attends to everything; 0 is all of them. `local_rope_theta`: theta of the others.
    `wide_layers`: the layer count of the size whose attention scale is hidden_size / num_attention_heads (llama.cpp tells it so).
    `turns_a_part`: the rotary part of a head may be smaller than it. `is_latent`: keys and values are one latent row (MLA).
    `constants`: keys of config.json that llama.cpp has in its code; `scaling`: of its rope scaling, where there is one.
    `unknown`: keys of the metadata that only other families under the same name state.
    """

    class_name: str
    model_type: str
    modules: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, tuple[Made, tuple[str, ...]]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    permuted: bool = False
    norm_offset: float = 0.0
    plain_norms: tuple[str, ...] = ()
    window_pattern: int = 0
    local_rope_theta: float | None = None
    wide_layers: int = 0
    turns_a_part: bool = False
    is_latent: bool = False
    scaling: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


_SILU = {"hidden_act": "silu"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh"}

_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION = tuple(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_PARTS = ("gate_proj", "up_proj", "down_proj")
_MLP = tuple(f"mlp.{name}" for name in _PARTS)
_EXPERTS = ("mlp.gate", *(f"mlp.experts.#.{name}" for name in _PARTS))
_SHARED = tuple(f"mlp.shared_experts.{name}" for name in _PARTS)
_DENSE = (*_NORMS, *_ATTENTION, *_HEAD_NORMS, *_MLP)
_GEMMA = (*_DENSE, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_NEXT = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.head", "shared_head.norm")  # of the layer that predicts a further token

_EXPERT_KEYS = {"num_experts_per_tok": "expert_used_count", "moe_intermediate_size": "expert_feed_forward_length"}
_DEEPSEEK_KEYS = _EXPERT_KEYS | {
    "n_routed_experts": "expert_count",
    "n_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}
_SCORE_BIAS = {"mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}

_DEEPSEEK2 = Architecture(
    "DeepseekV2ForCausalLM",
    "deepseek_v2",
    (
        *_NORMS,
        *(f"self_attn.{name}" for name in ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj")),
        *(f"self_attn.{name}" for name in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")),
        *_MLP,
        *_EXPERTS,
        *_SHARED,
    ),
    _SILU | {"norm_topk_prob": False},
    made={"self_attn.kv_b_proj.weight": ("latent_up", ("attn_k_b.weight", "attn_v_b.weight"))},
    keys=_DEEPSEEK_KEYS
    | {"q_lora_rank": "attention.q_lora_rank", "kv_lora_rank": "attention.kv_lora_rank", "qk_rope_head_dim": "rope.dimension_count"},
    turns_a_part=True,
    is_latent=True,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "llama", _DENSE, _SILU, permuted=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", _DENSE, _SILU),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", _DENSE, _SILU),
    "qwen3moe": Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        (*_NORMS, *_ATTENTION, *_HEAD_NORMS, *_EXPERTS),
        _SILU | {"norm_topk_prob": True},
        keys=_EXPERT_KEYS | {"num_experts": "expert_count"},
    ),
    "qwen3next": Architecture(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        (
            *(*_NORMS, *_ATTENTION, *_HEAD_NORMS, *_EXPERTS),
            *(f"linear_attn.{name}" for name in ("in_proj_qkvz", "in_proj_ba", "norm", "out_proj")),
            *(f"mlp.shared_expert.{name}" for name in _PARTS),
        ),
        _SILU | {"norm_topk_prob": True},
        tensors={"linear_attn.dt_bias": "ssm_dt.bias"},
        made={
            "linear_attn.in_proj_qkvz.weight": ("grouped", ("attn_qkv.weight", "attn_gate.weight")),
            "linear_attn.conv1d.weight": ("conv", ("ssm_conv1d.weight",)),
            "linear_attn.A_log": ("decay_rate", ("ssm_a",)),
            "mlp.shared_expert_gate.weight": ("row", ("ffn_gate_inp_shexp.weight",)),
        },
        keys=_EXPERT_KEYS
        | {
            "num_experts": "expert_count",
            "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
            "linear_conv_kernel_dim": "ssm.conv_kernel",
            "linear_key_head_dim": "ssm.state_size",
            "linear_num_key_heads": "ssm.group_count",
            "linear_num_value_heads": "ssm.time_step_rank",
            "linear_inner_size": "ssm.inner_size",
            "full_attention_interval": "full_attention_interval",
        },
        norm_offset=1.0,
        plain_norms=("ssm_norm",),
        turns_a_part=True,
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        "phi3",
        (*_NORMS, "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        _SILU,
        turns_a_part=True,
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        (*_ATTENTION, *_HEAD_NORMS, *_MLP, "post_attention_layernorm", "post_feedforward_layernorm"),
        _SILU,
        unknown=("attention.sliding_window",),  # OLMo-3
    ),
    "glm4moe": Architecture(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        (*_DENSE, *_EXPERTS, *_SHARED, *_NEXT),
        _SILU,
        tensors=_SCORE_BIAS,
        keys=_DEEPSEEK_KEYS | {"num_nextn_predict_layers": "nextn_predict_layers"},
        turns_a_part=True,
    ),
    "deepseek2": _DEEPSEEK2,
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        "gpt_oss",
        (*_NORMS, *_ATTENTION, "mlp.router"),
        _SILU,
        tensors={"self_attn.sinks": "attn_sinks.weight", "mlp.experts.down_proj_bias": "ffn_down_exps.bias"},
        made={
            "mlp.experts.gate_up_proj": ("gate_up", ("ffn_gate_exps.weight", "ffn_up_exps.weight")),
            "mlp.experts.gate_up_proj_bias": ("gate_up_bias", ("ffn_gate_exps.bias", "ffn_up_exps.bias")),
            "mlp.experts.down_proj": ("columns", ("ffn_down_exps.weight",)),
        },
        keys={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        scaling={"truncate": False},
    ),
    "gemma": Architecture("GemmaForCausalLM", "gemma", _DENSE, _GELU, norm_offset=1.0),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        _GEMMA,
        _GELU | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
        norm_offset=1.0,
        window_pattern=2,
        wide_layers=46,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        _GEMMA,
        _GELU | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        norm_offset=1.0,
        window_pattern=6,
        local_rope_theta=10000.0,
        wide_layers=62,
    ),
}

OF_EXPERTS: Mapping[str, Architecture] = {
    "llama": Architecture(
        "MixtralForCausalLM",
        "mixtral",
        (*_NORMS, *_ATTENTION, "block_sparse_moe.gate", *(f"block_sparse_moe.experts.#.{name}" for name in ("w1", "w2", "w3"))),
        _SILU,
        keys={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        permuted=True,
    ),
}
"""Where a mixture of experts is another family under the same name."""

OF_SIGMOIDS: Mapping[str, Architecture] = {
    "deepseek2": Architecture(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        _DEEPSEEK2.modules,
        _DEEPSEEK2.constants,
        _SCORE_BIAS,
        _DEEPSEEK2.made,
        _DEEPSEEK2.keys,
        turns_a_part=True,
        is_latent=True,
    )
}
"""Where a router of sigmoids is another family under the same name."""
