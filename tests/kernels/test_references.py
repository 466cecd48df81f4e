"""References against oracles that share no code with them: torch.nn, transformers, plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DeepseekV3Config, Gemma2Config, Glm4MoeConfig, LlamaConfig, Qwen3MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts, DeepseekV3TopkRouter
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.glm4_moe import modeling_glm4_moe as glm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from tsc.stdlib import BUILTINS
from tsc.types import Factor, Shape
from tskernels.activation import gelu, gelu_tanh, silu
from tskernels.cache import cache_append
from tskernels.contraction import einsum
from tskernels.elementwise import add, mul, scale, softcap
from tskernels.embedding import embedding, take_rows
from tskernels.gated import gated_linear
from tskernels.linear import linear
from tskernels.mixture import experts, route
from tskernels.normalization import add_norm, rms_norm, rms_scale, row_squares
from tskernels.rope import inverse_frequencies, qk_norm_rope, qk_rope, rope
from tskernels.views import merge, narrow, split

DTYPES = (torch.float32, torch.bfloat16)
# One unit in the last place: both sides round once from values that agree to f32's last bits.
ULP = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def close(actual: Tensor, exact: Tensor, atol: float = 0.0) -> None:
    """`exact` is computed in f64."""
    assert actual.shape == exact.shape
    torch.testing.assert_close(actual.double(), exact.double(), rtol=ULP[actual.dtype], atol=atol)


def weight_of(module: torch.nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def test_rms_norm_is_llamas_bit_for_bit() -> None:
    norm = LlamaRMSNorm(48, eps=1e-5)
    x = torch.randn(7, 48)
    with torch.no_grad():
        weight_of(norm).normal_()
        assert torch.equal(rms_norm(x, weight_of(norm), 1e-5, 0.0), norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_with_offset_is_gemmas_bit_for_bit(dtype: torch.dtype) -> None:
    norm = Gemma2RMSNorm(Gemma2Config().head_dim)
    with torch.no_grad():
        weight_of(norm).normal_()
        norm.to(dtype)
        x = torch.randn(7, 3, Gemma2Config().head_dim, dtype=dtype)
        assert torch.equal(rms_norm(x, weight_of(norm), norm.eps, 1.0), norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_rounds_once(dtype: torch.dtype) -> None:
    x, w = torch.randn(64, 96).to(dtype), torch.randn(96).to(dtype)
    exact = functional.rms_norm(x.double(), (96,), w.double() + 0.5, 1e-6)
    close(rms_norm(x, w, 1e-6, 0.5), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_norm_of_whole_rows_is_one_of_them_flat_whoever_adds_up_the_squares(parts: int, dtype: torch.dtype) -> None:
    x, w = torch.randn(7, 6, 2, 5).to(dtype), torch.randn(6, 2, 5).to(dtype)
    squares = torch.stack([row_squares(part) for part in x.chunk(parts, 1)]).sum(0)
    made = [rms_scale(x, squares, w, 1e-5, 0.5, 60) for x, w in zip(x.chunk(parts, 1), w.chunk(parts), strict=True)]
    exact = functional.rms_norm(x.double().flatten(1), (60,), w.double().flatten() + 0.5, 1e-5)
    close(torch.cat(made, 1).flatten(1), exact, atol=1e-6)


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
    },
}
PARAMETERS = {
    "default": (),
    "linear": (8.0,),
    "llama3": (32.0, 1.0, 4.0, 8192.0),
    "yarn": (40.0, 4096.0, 32.0, 1.0, (0.1 * math.log(40) + 1) / (0.08 * math.log(40) + 1), 1.0),
}


@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize("kind", ROPES)
def test_rope_is_transformers_bit_for_bit_in_f32(kind: str, width: int) -> None:
    config = LlamaConfig(hidden_size=4 * width, num_attention_heads=4, head_dim=width, rope_parameters=ROPES[kind])
    oracle = LlamaRotaryEmbedding(config)
    theta = float(ROPES[kind]["rope_theta"])  # type: ignore[arg-type]
    assert torch.equal(inverse_frequencies(width, theta, kind, PARAMETERS[kind]), oracle.inv_freq)
    positions = torch.tensor([0, 1, 2, 77, 4095, 131071, 5], dtype=torch.int32)
    x = torch.randn(7, 4, width)
    cosine, sine = oracle(x, positions[None])
    expected, _ = apply_rotary_pos_emb(x[None], x[None], cosine, sine, unsqueeze_dim=2)
    assert torch.equal(rope(x, positions, theta, kind, PARAMETERS[kind], False), expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_that_turn_together_have_the_bits_of_each(dtype: torch.dtype) -> None:
    x, positions = torch.randn(5, 7 * 16).to(dtype), torch.tensor([0, 1, 2, 77, 131_071], dtype=torch.int32)
    norm: dict[str, Any] = {"eps": 1e-5, "offset": 1.0}
    q_norm, k_norm = torch.randn(16).to(dtype), torch.randn(16).to(dtype)
    turn: dict[str, Any] = {"theta": 1e4, "kind": "linear", "parameters": (2.0,), "fraction": 0.5}
    heads: dict[str, Any] = {"q_heads": 3, "k_heads": 2, "width": 16}
    for interleaved in (False, True):
        parts = x[:, :48].view(5, 3, 16), x[:, 48:80].view(5, 2, 16)
        expected = torch.cat([rope(part, positions, interleaved=interleaved, **turn) for part in parts], 1)
        assert torch.equal(qk_rope(x, positions, **heads, interleaved=interleaved, **turn), expected.flatten(1))
        normed = [rms_norm(part, w, **norm) for part, w in zip(parts, (q_norm, k_norm), strict=True)]
        expected = torch.cat([rope(part, positions, interleaved=interleaved, **turn) for part in normed], 1)
        found = qk_norm_rope(x, positions, q_norm, k_norm, **heads, **norm, interleaved=interleaved, **turn)
        assert torch.equal(found, expected.flatten(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_addition_with_its_norm_has_the_bits_of_both(dtype: torch.dtype) -> None:
    x, residual, w = torch.randn(5, 48).to(dtype), torch.randn(5, 48).to(dtype), torch.randn(48).to(dtype)
    total = add(x, residual)
    assert torch.equal(add_norm(x, residual, w, 1e-5, 1.0), torch.cat((total, rms_norm(total, w, 1e-5, 1.0)), 1))


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.7])
def test_a_part_of_a_vector_turns_as_in_transformers(fraction: float) -> None:
    config = Glm4MoeConfig(hidden_size=96, num_attention_heads=4, head_dim=24, partial_rotary_factor=fraction, rope_theta=500.0)
    positions, x = torch.tensor([0, 1, 77, 4095], dtype=torch.int32), torch.randn(4, 3, 24)
    cosine, sine = glm.Glm4MoeRotaryEmbedding(config)(x, positions[None])
    expected, _ = glm.apply_rotary_pos_emb(x[None], x[None], cosine, sine, unsqueeze_dim=2)
    assert torch.equal(rope(x, positions, 500.0, "default", (), False, fraction), expected[0])


def resolved(
    scaling: dict[str, object], theta: float = 1e4, width: int = 16, fraction: float = 1.0
) -> tuple[float, str, tuple[float, ...]]:
    """Theta, kind and parameters that the language makes of a configuration's object."""
    shapes = [Shape.of("", [[Factor(n, width)] for n in ("T", "E")]), Shape.of("i32", [[Factor("T", width)]])]
    statics = {"theta": theta, "scaling": scaling, "interleaved": False, "fraction": fraction}
    found = BUILTINS["rope"].infer(shapes, statics).attributes
    return found["theta"], found["kind"], found["parameters"]


@pytest.mark.parametrize("attention_factor", [None, 1.3])
@pytest.mark.parametrize("longest", [None, 32, 33, 128])
def test_longrope_has_transformers_factors_for_the_longest_sequence(longest: int | None, attention_factor: float | None) -> None:
    short, long = [1.0, 1.0, 1.1, 1.3, 1.6, 2.0], [1.1, 1.7, 3.0, 5.5, 9.0, 17.0]
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": 4.0, "original_max_position_embeddings": 32}
    scaling |= {} if attention_factor is None else {"attention_factor": attention_factor}
    rope_parameters = scaling | {"rope_theta": 1e4, "partial_rotary_factor": 0.75}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=128, rope_parameters=rope_parameters)
    expected, magnitude = ROPE_INIT_FUNCTIONS["longrope"](config, None, seq_len=longest)
    theta, kind, parameters = resolved(scaling | {"longest_sequence": longest}, fraction=0.75)
    assert parameters == (magnitude, *(long if longest in (33, 128) else short))
    assert torch.equal(inverse_frequencies(12, theta, kind, parameters), expected)


@pytest.mark.parametrize("longest", [16, 64, 65, 200])
def test_dynamic_rope_has_transformers_angles_for_the_longest_sequence(longest: int) -> None:
    scaling = {"rope_type": "dynamic", "factor": 3.0}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=64, rope_parameters=scaling | {"rope_theta": 500.0}
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS["dynamic"](config, None, seq_len=longest)
    found = resolved(scaling | {"longest_sequence": longest, "original_max_position_embeddings": 64}, 500.0)
    assert magnitude == 1
    assert (found[0] > 500) == (longest > 64)
    assert torch.equal(inverse_frequencies(16, *found), expected)


def test_kinds_of_rope_differ() -> None:
    default = inverse_frequencies(64, 500000.0, "default", ())
    llama3 = inverse_frequencies(64, 500000.0, "llama3", PARAMETERS["llama3"])
    assert torch.equal(llama3[:4], default[:4])  # short waves are kept
    assert torch.equal(llama3[-4:], default[-4:] / 32.0)  # long ones slowed
    with pytest.raises(ValueError, match=r"kind `yarn` with parameters \[2\.0\]; known: default"):
        inverse_frequencies(64, 500000.0, "yarn", (2.0,))


def test_interleaved_rope_is_half_split_rope_of_the_pairs_apart() -> None:
    x, positions = torch.randn(3, 5, 16), torch.tensor([4, 0, 9], dtype=torch.int32)
    apart = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    halves = rope(apart, positions, 1e4, "default", (), False).chunk(2, -1)
    assert torch.equal(rope(x, positions, 1e4, "default", (), True), torch.stack(halves, -1).flatten(-2))


def test_yarn_in_the_language_has_transformers_defaults() -> None:
    scaling = {k: v for k, v in ROPES["yarn"].items() if k != "rope_theta"}
    assert resolved(scaling) == (1e4, "yarn", PARAMETERS["yarn"])
    del scaling["mscale"]
    assert resolved(scaling)[2][4] == 0.1 * math.log(40) + 1


def test_einsum_in_f64_is_numpys() -> None:
    x, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4, 5, 6, dtype=torch.float64)
    expected = np.einsum("the,hec->thc", x.numpy(), y.numpy())
    torch.testing.assert_close(einsum(x, y, "the,hec->thc"), torch.from_numpy(expected), rtol=0, atol=1e-12)


def _deepseek(**settings: object) -> DeepseekV3Config:
    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
    return DeepseekV3Config(**(sizes | settings))


@pytest.mark.parametrize("normalize", [True, False])
def test_route_is_deepseeks(normalize: bool) -> None:
    router = DeepseekV3TopkRouter(_deepseek(norm_topk_prob=normalize))
    with torch.no_grad():
        weight_of(router).normal_()
        router.e_score_correction_bias.normal_(std=0.3)
        logits, weights, indices = router(torch.randn(50, 16))
    choice: dict[str, Any] = {
        "top_k": 3,
        "score": "sigmoid",
        "normalize": normalize,
        "scale": 2.5,
        "groups": 4,
        "top_groups": 2,
        "group_best": 2,
    }
    made = route(logits, router.e_score_correction_bias, **choice)
    assert torch.equal(made.count_nonzero(-1), torch.full((50,), 3))
    close(made.gather(1, indices), weights.double(), 1e-7)


@pytest.mark.parametrize("normalize", [True, False])
def test_route_is_qwens(normalize: bool) -> None:
    router = Qwen3MoeTopKRouter(Qwen3MoeConfig(hidden_size=16, num_experts=8, num_experts_per_tok=3, norm_topk_prob=normalize))
    with torch.no_grad():
        weight_of(router).normal_()
        logits, weights, indices = router(torch.randn(50, 16))
    choice: dict[str, Any] = {
        "top_k": 3,
        "score": "softmax",
        "normalize": normalize,
        "scale": 1.0,
        "groups": 1,
        "top_groups": 1,
        "group_best": 1,
    }
    close(route(logits, **choice).gather(1, indices), weights.double(), 1e-7)


def test_experts_are_deepseeks() -> None:
    oracle = DeepseekV3Experts(_deepseek())
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.normal_(std=0.3)
    x, indices, weights = torch.randn(9, 16), torch.rand(9, 8).topk(3, -1).indices, torch.rand(9, 3)
    gate, up = oracle.gate_up_proj.detach().chunk(2, 1)
    dense = torch.zeros(9, 8).scatter_(1, indices, weights)
    with torch.no_grad():
        torch.testing.assert_close(experts(x, dense, gate, up, oracle.down_proj.detach()), oracle(x, indices, weights), rtol=0, atol=1e-5)


def test_rope_of_grouped_heads_rotates_by_token() -> None:
    x = torch.randn(3, 2, 5, 8)
    positions = torch.tensor([4, 0, 9], dtype=torch.int32)
    whole = rope(x, positions, 10000.0, "default", (), False)
    for head in range(2):
        assert torch.equal(whole[:, head], rope(x[:, head].contiguous(), positions, 10000.0, "default", (), False))


def test_rope_in_bf16_rounds_once() -> None:
    x = torch.randn(5, 4, 64).bfloat16()
    positions = torch.arange(5, dtype=torch.int32) * 1000
    assert torch.equal(rope(x, positions, 1e4, "default", (), False), rope(x.float(), positions, 1e4, "default", (), False).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype: torch.dtype) -> None:
    x = torch.randn(999).to(dtype) * 3
    wide = x.double()
    # Near zero of gelu's tail the result is a difference of nearly equal numbers.
    close(silu(x), wide * torch.sigmoid(wide), atol=1e-7)
    close(gelu(x), wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))), atol=1e-6)
    close(gelu_tanh(x), wide * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise(dtype: torch.dtype) -> None:
    x, y = torch.randn(5, 33).to(dtype), torch.randn(5, 33).to(dtype)
    close(add(x, y), x.double() + y.double(), atol=1e-7)
    close(mul(x, y), x.double() * y.double())
    close(scale(x, 0.3), x.double() * 0.3)
    close(softcap(x * 40, 30.0), 30.0 * torch.tanh((x * 40).double() / 30.0), atol=1e-6)
    with pytest.raises(ValueError, match=r"shapes \[5, 33\] and \[33\]"):
        add(x, y[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype) -> None:
    x, w, bias = torch.randn(2, 3, 16).to(dtype), torch.randn(24, 16).to(dtype), torch.randn(24).to(dtype)
    exact = torch.einsum("abi,oi->abo", x.double(), w.double())
    close(linear(x, w), exact, atol=1e-5)
    close(linear(x, w, bias), exact + bias.double(), atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_linear_rounds_once(dtype: torch.dtype) -> None:
    x, gate, up = torch.randn(2, 3, 16).to(dtype), torch.randn(24, 16).to(dtype), torch.randn(24, 16).to(dtype)
    a, b = (torch.einsum("abi,oi->abo", x.double(), w.double()) for w in (gate, up))
    halves = {"silu": a * torch.sigmoid(a), "gelu": a * 0.5 * (1 + torch.erf(a / math.sqrt(2)))}
    halves["gelu_tanh"] = a * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    for activation, half in halves.items():
        close(gated_linear(x, torch.cat((gate, up)), activation), half * b, atol=1e-4)


def test_embedding_of_shards_sums_to_the_whole() -> None:
    table = torch.randn(12, 5)
    table[7] = torch.inf
    ids = torch.tensor([0, 3, 4, 7, 11, 4], dtype=torch.int32)
    assert torch.equal(embedding(ids, table, 0), functional.embedding(ids, table))
    parts = [embedding(ids, part, shard) for shard, part in enumerate(table.chunk(3))]
    assert torch.equal(parts[0] + parts[1] + parts[2], functional.embedding(ids, table))
    assert torch.equal(parts[1].isinf().any(1), ids == 7)


def test_take_rows() -> None:
    x = torch.randn(6, 2, 3)
    assert torch.equal(take_rows(x, torch.tensor([5, 0, 5], dtype=torch.int32)), torch.stack([x[5], x[0], x[5]]))


def test_views_alias() -> None:
    x = torch.arange(48.0).view(2, 24)
    middle = narrow(x, 12, 12)
    heads = split(middle, (2, 3, 2))
    assert heads.shape == (2, 2, 3, 2)
    assert heads[1, 1, 2, 1] == x[1, 12 + 6 + 4 + 1]
    joined = merge(heads, 3)
    assert joined.shape == (2, 12)
    joined.zero_()
    assert x[:, 12:].count_nonzero() == 0
    assert x[:, :12].count_nonzero() == 23
    with pytest.raises(ValueError, match=r"split of a dimension of 24 into \[5, 5\]"):
        split(x, (5, 5))


def test_cache_append_writes_slots_and_nothing_else() -> None:
    cache = torch.zeros(3, 4, 2, 2, 5)
    k, v = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    slots = [9, 0, 3]
    assert cache_append(cache, k, v, torch.tensor(slots, dtype=torch.int32)) is cache
    for token, slot in enumerate(slots):
        page, row = divmod(slot, 4)
        assert torch.equal(cache[page, row], torch.stack((k[token], v[token])))
        cache[page, row] = 0
    assert cache.count_nonzero() == 0
