"""A setting that a model file does not implement is refused; each of these once compiled into other logits without a word."""

from __future__ import annotations

import pytest

from tsc.diagnostics import CompileError
from tsc.front import model_for, place_model
from tspasses.placed import Options

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 96,
    "rms_norm_eps": 1e-6,
    "sliding_window": 6,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "kv_lora_rank": 12,
}


@pytest.mark.parametrize(
    ("architecture", "setting"),
    [
        ("Qwen3ForCausalLM", {"use_sliding_window": True}),
        ("Qwen3ForCausalLM", {"hidden_act": "gelu"}),
        ("Gemma3ForCausalLM", {"final_logit_softcapping": 30.0}),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}),
        ("Gemma3ForCausalLM", {"hidden_activation": "relu"}),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}),
        ("LlamaForCausalLM", {"mlp_bias": True}),
        ("MixtralForCausalLM", {"hidden_act": "gelu"}),
        ("Qwen2ForCausalLM", {"hidden_act": "gelu"}),
        ("Olmo2ForCausalLM", {"attention_bias": True}),
        ("Phi3ForCausalLM", {"hidden_act": "gelu"}),
        ("Gemma2ForCausalLM", {"attention_bias": True}),
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}),
        ("Glm4MoeForCausalLM", {"hidden_act": "gelu"}),
        ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}),
        ("DeepseekV2ForCausalLM", {"topk_method": "noaux_tc"}),
        ("DeepseekV2ForCausalLM", {"scoring_func": "sigmoid"}),
        ("DeepseekV2ForCausalLM", {"moe_layer_freq": 2}),
        ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}),
    ],
)
def test_a_setting_that_is_not_implemented_is_refused(architecture: str, setting: dict[str, object]) -> None:
    model = model_for([architecture])
    place_model(model, SIZES, {}, Options())
    with pytest.raises(CompileError) as found:
        place_model(model, SIZES | setting, {}, Options())
    assert [d.code for d in found.value.diagnostics] == ["TS0216"]
    assert next(iter(setting)) in found.value.diagnostics[0].render()
