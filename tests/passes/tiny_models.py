"""The bundled models with tiny configs: placed and lowered for a mesh, with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tsc.front import place_model, read_model
from tsc.graph import Program
from tsc.graph_text import print_program
from tskernels.target import parse_target
from tspasses.lower import lower
from tspasses.pipeline import passes
from tspasses.placed import Options, PlacedModel
from tspasses.verify import verify

ROOT = Path(__file__).parents[2]
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "intermediate_size": 48,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_SIZES, "sliding_window": 5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "qwen3": {**_SIZES, "tie_word_embeddings": True},
    "gemma3": {**_SIZES, "sliding_window": 3, "sliding_window_pattern": 2, "query_pre_attn_scalar": 12},
    "token_sharded": _SIZES,
    "data_parallel": {**_SIZES, "sliding_window": 5},
    "greedy": {**_SIZES, "sliding_window": None},
    "expert_parallel": {
        **_SIZES,
        "n_routed_experts": 8,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
    },
    "phi3": {**_SIZES, "partial_rotary_factor": 0.5},
    "olmo2": _SIZES,
    "glm4_moe": {
        **_SIZES,
        "n_routed_experts": 8,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "attention_bias": True,
        "use_qk_norm": True,
    },
    "biased": {**_SIZES, "attention_bias": True},
    "qwen3_moe": {**_SIZES, "num_experts": 8, "moe_intermediate_size": 12, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "deepseek_v3": {
        **_SIZES,
        "num_attention_heads": 8,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "q_lora_rank": 10,
        "kv_lora_rank": 14,
        "n_routed_experts": 8,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.7},
    },
}
"""llama: a window and scaled rope; qwen3: tied embedding; gemma3: two kinds of layers; phi3: parts of tensors, and of heads that turn;
olmo2: norms of shared rows; glm4_moe: biases; biased: llama with one of a pending sum, too; qwen3_moe, deepseek_v3: experts, latent
attention; token_sharded, data_parallel, expert_parallel: examples, with tokens split."""


FILES = {"biased": "llama"}
"""Of configs that are not named for their model file."""


def path_of(model: str) -> Path:
    """The model file of a config."""
    path = ROOT / "models" / f"{FILES.get(model, model)}.ts"
    return path if path.exists() else ROOT / "examples" / model / f"{model}.ts"


@cache
def _placed(model: str, mesh: frozenset[tuple[str, int]]) -> PlacedModel:
    return place_model(read_model(path_of(model)), CONFIGS[model], dict(mesh), Options("f32"))


def lowered(model: str, mesh: Mapping[str, int]) -> Program:
    """The program right after lowering, which is the caller's to change."""
    return lower(_placed(model, frozenset(mesh.items())))


def stages(model: str, mesh: Mapping[str, int]) -> Iterator[tuple[str, Program]]:
    """The program after lowering and after each pass. Each stage changes the one before it."""
    program = lowered(model, mesh)
    yield "lower", program
    for step in passes(parse_target("cpu+")):
        program = step.run(program)
        verify(program, step.name)
        yield step.name, program


def changes(model: str, mesh: Mapping[str, int]) -> Iterator[tuple[str, Program, str]]:
    """The stages whose text is another than that of the stage before, with the text."""
    before = ""
    for stage, program in stages(model, mesh):
        text = print_program(program)
        if text != before:
            yield stage, program, text
        before = text
