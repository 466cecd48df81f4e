"""The GGUF architectures that are read: one row each, stating only what the converter dropped or changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family as llama.cpp's converter leaves it.

    `permuted`: rows of q and k are stored pairwise, for interleaved rotation. `norm_offset`: what was added to the norms' weights.
    `window_pattern`: one layer in so many attends to everything; 0 is all of them. `local_rope_theta`: theta of the others.
    `wide_layers`: the layer count of the size whose attention scale is hidden_size / num_attention_heads (llama.cpp tells it so).
    `constants`: keys of config.json that llama.cpp has in its code.
    """

    class_name: str
    model_type: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    permuted: bool = False
    norm_offset: float = 0.0
    window_pattern: int = 0
    local_rope_theta: float | None = None
    wide_layers: int = 0


_SILU = {"hidden_act": "silu"}
_GELU = {"hidden_activation": "gelu_pytorch_tanh"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "llama", _SILU, permuted=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", _SILU),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", _SILU),
    "gemma": Architecture("GemmaForCausalLM", "gemma", _GELU, norm_offset=1.0),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        _GELU | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
        norm_offset=1.0,
        window_pattern=2,
        wide_layers=46,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        _GELU | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        norm_offset=1.0,
        window_pattern=6,
        local_rope_theta=10000.0,
        wide_layers=62,
    ),
}
