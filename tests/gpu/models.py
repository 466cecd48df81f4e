"""Small models of widths that kernels for GPUs take, and artifacts of them for GPUs, compiled here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models.running import compiled
from tests.models.tiny import _DEEPSEEK, _YARN, Case, make
from transformers import DeepseekV3Config, LlamaConfig

from tsc.request import Cache

_HEADS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
LLAMA = Case("gpu_llama", LlamaConfig, _HEADS | {"num_hidden_layers": 2})
LLAMA_WIDE = Case("gpu_llama_wide", LlamaConfig, LLAMA.settings | {"head_dim": 64})
"""With heads of 64 elements, which the kernel in CUDA C++ takes."""
_MLA: dict[str, Any] = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 16, "v_head_dim": 8, "q_lora_rank": 48, "kv_lora_rank": 64}
_KIMI: dict[str, Any] = _MLA | {"num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 16, "moe_intermediate_size": 32}
KIMI = Case(
    "gpu_kimi",
    DeepseekV3Config,
    _DEEPSEEK | _HEADS | _KIMI | {"n_group": 1, "topk_group": 1, "rope_parameters": _YARN | {"mscale_all_dim": 1.0}},
)
"""As Kimi K2 is: one group of experts, latent attention, a dense first layer. Heads are so small that 28 new tokens are expanded."""
KIMI_LATENT = Case(
    "gpu_kimi_latent",
    DeepseekV3Config,
    KIMI.settings | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 64},
)
"""With heads and a latent cache as wide as Kimi K2's, which is what the kernels in CUDA C++ take."""


class GpuModels:
    """Makes each checkpoint and artifact once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checkpoint(self, case: Case) -> Path:
        path = self._folder / case.name
        if not path.exists():
            make(case).save_pretrained(path)
        return path

    def artifact(self, case: Case, target: str, dtype: str = "f32", cache: Cache = "dtype") -> Path:
        path = self._folder / f"{case.name}-{target}-{dtype}-{cache}.tsa"
        return path if path.exists() else compiled(self.checkpoint(case), path, dtype=dtype, target=target, mesh={}, cache=cache)
