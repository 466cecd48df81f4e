"""Ops on rows and single elements: any shape, views of wider values, and what is written to caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gpu.against_float64 import DTYPES, check, run
from torch import Tensor

from tskernels.registry import Call, Operand, lookup, select
from tskernels.rows import max_key
from tskernels.target import gpu

generated = settings(deadline=None, max_examples=5)
dtypes = st.sampled_from(sorted(DTYPES))
seeds = st.integers(0, 2**31)
ROPES: list[dict[str, Any]] = [
    {"theta": 1e4, "kind": "default", "parameters": [], "interleaved": False},
    {"theta": 5e5, "kind": "llama3", "parameters": [8.0, 1.0, 4.0, 8192.0], "interleaved": False, "fraction": 0.5},
    {"theta": 1e4, "kind": "yarn", "parameters": [4.0, 4096.0, 32.0, 1.0, 1.3, 1.0], "interleaved": True},
    {"theta": 1e4, "kind": "linear", "parameters": [2.0], "interleaved": True, "fraction": 0.75},
    {"theta": 1e4, "kind": "longrope", "parameters": [1.2, *(1 + i / 4 for i in range(8))], "interleaved": False, "fraction": 16 / 24},
]


def rows(shape: tuple[int, ...], dtype: str, is_view: bool) -> Tensor:
    """A value of its own, or the part of a joint product that is one."""
    made = torch.randn(*shape[:-1], shape[-1] + (5 if is_view else 0)).to(DTYPES[dtype])
    return made[..., 3 : 3 + shape[-1]] if is_view else made


shapes = st.sampled_from([(1, 8), (5, 72), (3, 2, 24), (4, 2, 3, 40), (2, 1030)])


@generated
@given(shape=shapes, dtype=dtypes, is_view=st.booleans(), seed=seeds)
def test_normalization(shape: tuple[int, ...], dtype: str, is_view: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = rows(shape, dtype, is_view)
    check("ts::rms_norm", x, torch.randn(shape[-1]).to(x.dtype), eps=1e-6, offset=1.0)
    check("ts::row_squares", x)
    check("ts::rms_scale", x, torch.rand(shape[0]) * 100, torch.randn(shape[1:]).to(x.dtype), eps=1e-6, offset=0.5, count=500)


@generated
@given(dtype=dtypes, is_view=st.booleans(), rope=st.sampled_from(ROPES), heads=st.sampled_from([(), (5,), (2, 3)]), seed=seeds)
def test_rope_far_from_the_origin(dtype: str, is_view: bool, rope: dict[str, Any], heads: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    x = rows((4, *heads, 24), dtype, is_view)
    # An angle's own rounding in f32 is the reference's, too; what is left is that of sines and cosines of up to 1.3.
    check("ts::rope", x, torch.tensor([0, 1, 131_072, 999_999], dtype=torch.int32), slack=float(x.abs().max()), **rope)


@generated
@given(
    shape=st.sampled_from([(1, 8), (5, 72), (2, 1030)]), dtype=dtypes, is_view=st.booleans(), offset=st.sampled_from([0.0, 1.0]), seed=seeds
)
def test_an_addition_with_its_norm_has_the_bits_of_both(
    shape: tuple[int, int], dtype: str, is_view: bool, offset: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x, residual, w = rows(shape, dtype, is_view), rows(shape, dtype, not is_view), rows(shape[1:], dtype, is_view=False)
    total = run("ts::add", residual, x, shape=shape, dtype=x.dtype)
    norm = run("ts::rms_norm", total, w, shape=shape, dtype=x.dtype, eps=1e-6, offset=offset)
    made = run("ts::add_norm", x, residual, w, shape=(shape[0], 2 * shape[1]), dtype=x.dtype, eps=1e-6, offset=offset)
    assert torch.equal(made, torch.cat((total, norm), 1))


@generated
@given(dtype=dtypes, is_view=st.booleans(), rope=st.sampled_from(ROPES), heads=st.sampled_from([(1, 1), (6, 2), (40, 3)]), seed=seeds)
def test_heads_that_turn_together_have_the_bits_of_each(
    dtype: str, is_view: bool, rope: dict[str, Any], heads: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    joint = rows((3, (sum(heads) + 2) * 24), dtype, is_view)
    together = joint[:, : sum(heads) * 24].view(3, -1, 24)
    parts = together[:, : heads[0]], together[:, heads[0] :]
    positions = torch.tensor([1, 131_072, 7], dtype=torch.int32)
    weights = [rows((24,), dtype, is_view=False) for _ in heads]
    norm: dict[str, Any] = {"eps": 1e-6, "offset": 0.5}
    given = {"q_heads": heads[0], "k_heads": heads[1], "width": 24, **rope}
    whole: dict[str, Any] = {"shape": (3, sum(heads) * 24), "dtype": joint.dtype}

    def turned(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([run("ts::rope", x, positions, shape=tuple(x.shape), dtype=x.dtype, **rope).flatten(1) for x in parts], 1)

    assert torch.equal(run("ts::qk_rope", joint, positions, **whole, **given), turned(parts))
    normed = [run("ts::rms_norm", x, w, shape=tuple(x.shape), dtype=x.dtype, **norm) for x, w in zip(parts, weights, strict=True)]
    assert torch.equal(run("ts::qk_norm_rope", joint, positions, *weights, **whole, **given, **norm), turned(normed))


@generated
@given(shape=shapes, dtype=dtypes, is_view=st.booleans(), seed=seeds)
def test_functions_of_elements(shape: tuple[int, ...], dtype: str, is_view: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = rows(shape, dtype, is_view)
    for name in ("silu", "sigmoid", "gelu", "gelu_tanh"):
        check(f"ts::{name}", x * 3, slack=1.0 if dtype == "f32" else 2.0**-8)
    check("ts::scale", x, factor=0.7)
    check("ts::softcap", x * 10, cap=3.0, slack=1.0 if dtype == "f32" else 0)
    other = torch.randn(shape).to(x.dtype)
    check("ts::add", x, other)
    check("ts::mul", x, other)
    check("ts::scale_rows", x, other[..., :1])
    if len(shape) > 1:
        check("ts::exp_minus", x, torch.randn(shape[:-1]), slack=4.0)
    check("ts::decay", x, torch.randn(shape[1:]), torch.randn(shape[1:]), slack=4.0)
    check("ts::take_rows", x, torch.tensor([shape[0] - 1, 0, 0], dtype=torch.int32))


def test_torch_adds_where_its_time_for_views_of_wider_values_is_not_known_to_be_longer() -> None:
    x = Operand("bf16", (None, 4096))
    chosen = {architecture: select(Call("ts::add", (x, x)), gpu(architecture)).name for architecture in ("sm_90a", "gfx950")}
    assert chosen == {"sm_90a": "triton", "gfx950": "torch"}


def test_rows_are_divided() -> None:
    check("ts::divide_rows", torch.randn(4, 3, 10), torch.rand(4, 3) + 0.1)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_ids_of_other_ranks_have_rows_of_zeros(dtype: str) -> None:
    table = torch.randn(10, 40).to(DTYPES[dtype])
    table[0, 0] = torch.inf
    ids = torch.tensor([3, 11, 0, 25, 9, 19], dtype=torch.int32)
    result = run("ts::embedding", ids, table, shape=(6, 40), dtype=table.dtype, shard=1)
    assert torch.equal(result[[1, 5]], table[[1, 9]])
    assert not result[[0, 2, 3, 4]].any()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("op", ["ts::cache_append", "ts::latent_append"])
def test_a_cache_gets_what_its_slots_say(op: str, dtype: str) -> None:
    width = (2, 8) if op == "ts::cache_append" else (20,)
    x, y = rows((5, *width), dtype, is_view=True), rows((5, *width), dtype, is_view=False)[..., : 8 if op == "ts::cache_append" else 4]
    cache = torch.randn(3, 4, 2, *width).to(x.dtype) if op == "ts::cache_append" else torch.randn(3, 4, 24).to(x.dtype)
    slots = torch.tensor([3, 11, 0, 7, 9], dtype=torch.int32)
    expected = lookup(op, "torch").function(cache.clone(), x, y, slots)
    result = lookup(op, "triton").function(cache, x, y, slots)
    assert result is cache
    assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_keys_order_zeros_infinities_and_nan_as_the_reference_does(dtype: str) -> None:
    x = torch.randn(4, 5000).to(DTYPES[dtype])
    x[1, 3], x[3, 100], x[3, 10] = torch.nan, torch.inf, -torch.inf
    x[2] = 0
    x[2, 7] = -0.0
    for shard in (0, 2):
        check("ts::max_key", x, shard=shard)
    keys = max_key(x, 1)
    check("ts::key_index", keys)
    result = run("ts::key_value", keys, shape=(4,), dtype=torch.float32)
    assert torch.equal(result.nan_to_num(7), x.float().amax(-1).nan_to_num(7))
    largest = run("ts::row_max", x, shape=(4,), dtype=torch.float32)
    assert torch.equal(largest.nan_to_num(7), x.float().amax(-1).nan_to_num(7))
    check("ts::row_sum", x[::2].view(2, 5, 1000), slack=1000.0)


def test_a_norm_may_have_a_type_of_its_own() -> None:
    """Triton's interpreter goes by the tensors; what is compiled goes by the plan."""
    call = Call(
        "ts::add_norm", (Operand("bf16", (None, 64)), Operand("bf16", (None, 64)), Operand("f32", (64,))), {"eps": 1e-6, "offset": 0.0}
    )
    plan = lookup("ts::add_norm", "triton").plan
    assert plan is not None
    [launch] = plan(call, gpu("sm_90a")).variants[0].launches
    assert [launch.types[name] for name in ("x", "residual", "w", "out")] == ["bf16", "bf16", "f32", "bf16"]


def test_a_table_that_a_step_makes_is_looked_up_by_another_kernel() -> None:
    table = Call("ts::embedding", (Operand("i32", (None,)), Operand("bf16", (None, 64))), {"shard": 0})
    assert not select(table, gpu("sm_90a")).name.startswith("triton")
