"""A DeepSeek-V3 in PyTorch, to train: latent attention, mixtures of experts beside a shared one, a layer that predicts one token further.

Parameters have the names of DeepSeek's checkpoints. Dimensions: B sequences of T tokens, D width, H heads, P = A + R query and key, E value
and C latent, N experts of I.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """By the names of config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 1
    intermediate_size: int = 704
    moe_intermediate_size: int = 144
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    q_lora_rank: int = 96
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 48
    qk_rope_head_dim: int = 16
    v_head_dim: int = 64
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    num_nextn_predict_layers: int = 1
    hidden_act: str = "silu"
    attention_bias: bool = False
    rope_interleave: bool = True

    def written(self) -> dict[str, Any]:
        """What config.json has."""
        return {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "dtype": "bfloat16", **asdict(self)}


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def _linear(given: int, made: int) -> nn.Linear:
    return nn.Linear(given, made, bias=False)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., T, R], whose neighbouring numbers are pairs."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        heads, eps = c.num_attention_heads, 1e-6
        self.q_a_proj = _linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = Norm(c.q_lora_rank, eps)
        self.q_b_proj = _linear(c.q_lora_rank, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim))
        self.kv_a_proj_with_mqa = _linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = Norm(c.kv_lora_rank, eps)
        self.kv_b_proj = _linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = _linear(heads * c.v_head_dim, c.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, (B, T, _), H = self.c, x.shape, self.c.num_attention_heads
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(B, T, H, -1).transpose(1, 2)
        latent, shared_key = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        keys, values = (
            self.kv_b_proj(self.kv_a_layernorm(latent)).view(B, T, H, -1).transpose(1, 2).split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
        )
        content, turning = query.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        turned_key = _turned(shared_key, cos, sin)[:, None].expand(B, H, T, -1)
        query = torch.cat((content, _turned(turning, cos, sin)), dim=-1)
        mixed = functional.scaled_dot_product_attention(query, torch.cat((keys, turned_key), dim=-1), values, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = _linear(width, inner), _linear(width, inner), _linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """The scores of experts; the bias decides who is chosen and is no part of the weights: it is moved until all are chosen as often."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [tokens, D] -> weights and indices [tokens, top]."""
        c = self.c
        scores = functional.linear(x, self.weight).sigmoid()
        chosen = (scores + self.e_score_correction_bias).detach()
        groups = chosen.view(-1, c.n_group, c.n_routed_experts // c.n_group)
        best = groups.topk(2, dim=-1).values.sum(-1).topk(c.topk_group, dim=-1).indices
        allowed = torch.zeros_like(groups[..., 0]).scatter_(1, best, 1.0).bool()
        chosen = groups.masked_fill(~allowed[..., None], -1.0).flatten(1)
        indices = chosen.topk(c.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, indices)
        return c.routed_scaling_factor * weights / (weights.sum(-1, keepdim=True) + 1e-20), indices


class Mixture(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate = Gate(c)
        self.experts = nn.ModuleList(MLP(c.hidden_size, c.moe_intermediate_size) for _ in range(c.n_routed_experts))
        self.shared_experts = MLP(c.hidden_size, c.moe_intermediate_size * c.n_shared_experts)
        self.counts = torch.zeros(c.n_routed_experts)
        """Of the last forward: how often each expert was chosen."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, indices = self.gate(flat)
        order = indices.flatten().argsort(stable=True)
        self.counts = torch.bincount(indices.flatten(), minlength=len(self.experts))
        tokens = order // indices.shape[1]
        parts = flat[tokens].split(self.counts.tolist())
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        made = made * weights.flatten()[order][:, None]
        return (self.shared_experts(flat).index_add(0, tokens, made)).view_as(x)


class Layer(nn.Module):
    def __init__(self, c: Config, *, sparse: bool) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = Mixture(c) if sparse else MLP(c.hidden_size, c.intermediate_size)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Further(Layer):
    """Predicts the token after the next, from what the model made of one token and from the embedding of the next."""

    def __init__(self, c: Config) -> None:
        super().__init__(c, sparse=True)
        self.enorm, self.hnorm = Norm(c.hidden_size, c.rms_norm_eps), Norm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = _linear(2 * c.hidden_size, c.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": Norm(c.hidden_size, c.rms_norm_eps)})

    def predict(self, made: Tensor, embedded: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        joined = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(made)), dim=-1))
        found: Tensor = self.shared_head["norm"](self(joined, cos, sin))
        return found


class Pico(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        layers = [Layer(c, sparse=i >= c.first_k_dense_replace) for i in range(c.num_hidden_layers)]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocab_size, c.hidden_size),
                "layers": nn.ModuleList([*layers, Further(c)]),
                "norm": Norm(c.hidden_size, c.rms_norm_eps),
            }
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into = name.endswith(("o_proj.weight", "down_proj.weight"))  # what is added to the residual begins small
                deviation = 0.02 if "embed" in name or "gate.weight" in name else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=deviation / (math.sqrt(2 * c.num_hidden_layers) if into else 1))

    @property
    def mixtures(self) -> list[Mixture]:
        return [module for module in self.modules() if isinstance(module, Mixture)]

    def rotation(self, T: int, device: torch.device) -> tuple[Tensor, Tensor]:
        R = self.c.qk_rope_head_dim
        speed = self.c.rope_theta ** (-torch.arange(0, R, 2, device=device) / R)
        angle = torch.arange(T, device=device)[:, None] * speed
        return angle.cos(), angle.sin()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, T] -> logits of the next token [B, T, V], and what they come of [B, T, D]."""
        cos, sin = self.rotation(ids.shape[1], ids.device)
        x = self.model["embed_tokens"](ids)
        for layer in list(self.model["layers"])[:-1]:
            x = layer(x, cos, sin)
        made: Tensor = self.model["norm"](x)
        return functional.linear(made, self.model["embed_tokens"].weight), made

    def further(self, made: Tensor, following: Tensor) -> Tensor:
        """Logits of the token after `following` [B, T], which are the ids after those that `made` [B, T, D] is of."""
        cos, sin = self.rotation(following.shape[1], following.device)
        predicted = self.model["layers"][-1].predict(made, self.model["embed_tokens"](following), cos, sin)
        return functional.linear(predicted, self.model["embed_tokens"].weight)
