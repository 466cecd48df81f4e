"""GGUF files of small models, as llama.cpp's converter writes them: what it renames, stacks, splits, turns and adds, and what it states."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

State = Mapping[str, Tensor]
_NAMES = {
    "MixtralForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Qwen3NextForCausalLM": "qwen3next",
    "Phi3ForCausalLM": "phi3",
    "Olmo2ForCausalLM": "olmo2",
    "Gemma2ForCausalLM": "gemma2",
    "Glm4MoeForCausalLM": "glm4moe",
    "DeepseekV2ForCausalLM": "deepseek2",
    "DeepseekV3ForCausalLM": "deepseek2",
    "GptOssForCausalLM": "gpt-oss",
}
_GATES = {"sigmoid": gguf.ExpertGatingFuncType.SIGMOID, "softmax": gguf.ExpertGatingFuncType.SOFTMAX}


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    state: State,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    splits_latent: bool = True,
) -> None:
    """config: of config.json, completed. kind: of matrices whose rows it takes. splits_latent: as newer converters do."""
    name = _NAMES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, name)
    _state(writer, name, config, splits_latent)
    architecture = next(k for k, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    known = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"] + 1)
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    for tensor, value in _converted(name, config, state, splits_latent):
        stored = tensor if tensor.startswith("blk.") else known.get_name(tensor, try_suffixes=(".weight", ".bias"))
        assert stored is not None, tensor
        numbers = value.float().contiguous().numpy()
        own = kind if value.ndim > 1 and value.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored, gguf.quantize(numbers, own), raw_dtype=own)
    _rope_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _state(writer: Any, name: str, config: Mapping[str, Any], splits_latent: bool) -> None:
    """What the header states."""
    heads, head = config["num_attention_heads"], config["head_dim"]
    is_latent = name == "deepseek2"
    writer.add_block_count(config["num_hidden_layers"] + (config.get("num_nextn_predict_layers") or 0) * (name == "glm4moe"))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if is_latent and splits_latent else config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if name != "phi3" and not is_latent:
        writer.add_key_length(head)
        writer.add_value_length(head)
    for key, add in (
        ("num_local_experts", writer.add_expert_count),
        ("num_experts", writer.add_expert_count),
        ("n_routed_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
        ("n_group", writer.add_expert_group_count),
        ("topk_group", writer.add_expert_group_used_count),
        ("n_shared_experts", writer.add_expert_shared_count),
        ("first_k_dense_replace", writer.add_leading_dense_block_count),
        ("routed_scaling_factor", writer.add_expert_weights_scale),
        ("q_lora_rank", writer.add_q_lora_rank),
        ("kv_lora_rank", writer.add_kv_lora_rank),
        ("linear_conv_kernel_dim", writer.add_ssm_conv_kernel),
        ("linear_key_head_dim", writer.add_ssm_state_size),
        ("linear_num_key_heads", writer.add_ssm_group_count),
        ("linear_num_value_heads", writer.add_ssm_time_step_rank),
    ):
        if config.get(key) is not None:
            add(config[key])
    if name in ("deepseek2", "glm4moe") and config.get("norm_topk_prob"):
        writer.add_expert_weights_norm(True)
    if name in ("deepseek2", "glm4moe"):
        writer.add_expert_gating_func(_GATES["softmax" if "V2" in config["architectures"][0] else "sigmoid"])
    if name == "glm4moe" and config.get("num_nextn_predict_layers"):
        writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])
    if is_latent:
        turned, content, values = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
        writer.add_rope_dimension_count(turned)
        writer.add_key_length(config["kv_lora_rank"] + turned if splits_latent else content + turned)
        writer.add_value_length(config["kv_lora_rank"] if splits_latent else values)
        if splits_latent:
            writer.add_key_length_mla(content + turned)
            writer.add_value_length_mla(values)
    elif name in ("phi3", "glm4moe", "qwen3next", "llama"):
        writer.add_rope_dimension_count(int(head * _rope(config).get("partial_rotary_factor", 1.0)))
    if name == "qwen3next":
        writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
        writer.add_full_attention_interval(config["full_attention_interval"])
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if name in ("gemma2", "gpt-oss", "phi3"):
        writer.add_sliding_window(config["sliding_window"] or 0)
    _state_scaling(writer, name, config)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters: Mapping[str, Any] = config["rope_parameters"]
    return parameters


def _state_scaling(writer: Any, name: str, config: Mapping[str, Any]) -> None:
    rope = _rope(config)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        prefix = f"{writer.arch}.rope.scaling."
        for key, stated in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"), ("attention_factor", "yarn_attn_factor")):
            if rope.get(key) is not None:
                writer.add_float32(prefix + stated, rope[key])
        if name == "deepseek2" and "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        scale = config["max_position_embeddings"] / config["original_max_position_embeddings"]
        original = torch.tensor(float(config["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(float((1 + torch.tensor(scale).log() / original.log()).sqrt()))


def _rope_factors(writer: Any, config: Mapping[str, Any]) -> None:
    for of in ("long", "short"):
        if (factors := _rope(config).get(f"{of}_factor")) is not None:
            writer.add_tensor(f"rope_factors_{of}.weight", torch.tensor(factors, dtype=torch.float32).numpy())


def _converted(name: str, config: Mapping[str, Any], state: State, splits_latent: bool) -> Iterator[tuple[str, Tensor]]:
    """By names of Hugging Face, or of GGUF where the name map does not go that way."""
    stacks: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for tensor, value in state.items():
        if tensor == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if (expert := re.fullmatch(r"(.*experts\.)(\d+)\.(.*)", tensor)) is not None:
            stacks[expert[1] + expert[3]][int(expert[2])] = value
        else:
            yield from _one(name, config, tensor, value, splits_latent)
    for tensor, values in stacks.items():
        yield tensor, torch.stack([values[i] for i in range(len(values))])


def _one(name: str, config: Mapping[str, Any], tensor: str, value: Tensor, splits_latent: bool) -> Iterator[tuple[str, Tensor]]:
    layer = f"blk.{tensor.split('.')[2]}" if ".layers." in tensor else ""
    last = tensor.split(".")[-1]
    if name == "llama" and ("q_proj" in tensor or "k_proj" in tensor):
        heads = config["num_attention_heads" if "q_proj" in tensor else "num_key_value_heads"]
        value = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    if name == "gemma2" and tensor.endswith("norm.weight"):
        value = value + 1
    if name == "qwen3next" and tensor.endswith("norm.weight") and "linear_attn" not in tensor:
        value = value + 1
    if last == "A_log":
        yield f"{layer}.ssm_a", -value.exp()
    elif last == "dt_bias":
        yield f"{layer}.ssm_dt.bias", value
    elif tensor.endswith(("conv1d.weight", "shared_expert_gate.weight")):
        yield tensor, value.squeeze()
    elif tensor.endswith("in_proj_qkvz.weight"):
        heads, key = config["linear_num_key_heads"], config["linear_key_head_dim"]
        values = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
        q, k, v, z = (part.flatten(0, 1) for part in torch.split(value.reshape(heads, -1, value.shape[1]), [key, key, values, values], 1))
        yield f"{layer}.attn_qkv.weight", torch.cat([q, k, v])
        yield f"{layer}.attn_gate.weight", z
    elif tensor.endswith("kv_b_proj.weight") and splits_latent:
        heads, content, values = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
        keys, v = torch.split(value.reshape(heads, content + values, -1), [content, values], 1)
        yield f"{layer}.attn_k_b.weight", keys.transpose(1, 2)
        yield f"{layer}.attn_v_b.weight", v
    elif last == "e_score_correction_bias":
        yield f"{layer}.exp_probs_b.bias", value
    elif last == "sinks":
        yield f"{layer}.attn_sinks.weight", value
    elif last == "gate_up_proj":
        yield f"{layer}.ffn_gate_exps.weight", value.transpose(1, 2)[:, ::2]
        yield f"{layer}.ffn_up_exps.weight", value.transpose(1, 2)[:, 1::2]
    elif last == "gate_up_proj_bias":
        yield f"{layer}.ffn_gate_exps.bias", value[:, ::2]
        yield f"{layer}.ffn_up_exps.bias", value[:, 1::2]
    elif last == "down_proj":
        yield f"{layer}.ffn_down_exps.weight", value.transpose(1, 2)
    elif last == "down_proj_bias":
        yield f"{layer}.ffn_down_exps.bias", value
    else:
        yield tensor, value
