"""Expanded latent attention against its reference in f64, and both halves of a step's rows against all of them absorbed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gpu.against_float64 import DTYPES, run, wide
from tests.gpu.test_attention_interpreted import OFF
from tests.kernels.test_attention import make_step
from torch import Tensor

from tskernels.fp8_cache import narrow
from tskernels.registry import lookup, op_named

few = settings(deadline=None, max_examples=4)
few_wide = settings(deadline=None, max_examples=1)
SCALE = 0.1


@dataclass
class Expansion:
    """A step of latent attention before it is absorbed. rest: cache, and the up-projections, which are views of one weight."""

    content: Tensor
    rotated: Tensor
    cache: Tensor
    k_up: Tensor
    v_up: Tensor
    step: tuple[Tensor, Tensor, Tensor, int]

    def operands(self, result: Tensor) -> list[Any]:
        return [result, self.content, self.rotated, self.cache, self.k_up, self.v_up, *self.step]

    def absorbed(self) -> list[Any]:
        q = torch.einsum("tha,hac->thc", wide(self.content), wide(self.k_up))
        return [q, wide(self.rotated), wide(self.cache), *self.step]


def make(
    sequences: list[tuple[int, int]], page_size: int, heads: int, widths: tuple[int, int, int, int], dtype: str, seed: int
) -> Expansion:
    """widths: content, rotated, latent, values."""
    content, rotated, latent, values = widths
    step = make_step(sequences, page_size=page_size, K=1, G=heads, E=latent + rotated, dtype=dtype, seed=seed)
    q = torch.randn(len(step.q), heads, content + rotated).to(step.q.dtype)  # part of a joint product
    kv_up = (torch.randn(heads, content + values, latent) * latent**-0.5).to(step.q.dtype)
    return Expansion(
        q[..., :content],
        q[..., content:].contiguous(),
        step.cache[:, :, 0, 0].contiguous(),
        kv_up[:, :content],
        kv_up[:, content:],
        (step.spans, step.lengths, step.tables, 0),
    )


def agree(given: Expansion, dtype: str, expanded_from: int) -> Tensor:
    """The kernel's result, whose rows of other sequences stay as they were."""
    shape = (*given.content.shape[:2], given.v_up.shape[1])
    before = torch.full(shape, 7.0, dtype=given.content.dtype)
    reference = op_named("ts::expanded_attention").reference
    expected = reference(*map(wide, given.operands(before.clone())), scale=SCALE, expanded_from=expanded_from)
    result = before.clone()
    kernel = "triton_fp8_cache" if given.cache.dtype == torch.float8_e4m3fn else "triton"
    lookup("ts::expanded_attention", kernel).function(*given.operands(result), scale=SCALE, expanded_from=expanded_from)
    spans = given.step[0].tolist()
    for first, last in spans:
        if last - first < expanded_from:
            assert bool((result[first:last] == 7).all())
    # A value is a product of unit vectors' size, rounded when it is made; weights, and scores by it, are rounded like it.
    assert float((result.double() - expected).abs().max()) <= 2 * OFF[dtype] * max(4.0, float(expected.abs().max()))
    return result


@few
@given(
    sequences=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 40)).filter(any), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 32, 64]),
    heads=st.sampled_from([1, 5, 8]),
    widths=st.sampled_from([(16, 8, 24, 16), (24, 16, 64, 40)]),
    dtype=st.sampled_from(sorted(DTYPES)),
    expanded_from=st.sampled_from([1, 4, 20]),
    fp8=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_expanded_attention(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: int,
    widths: tuple[int, int, int, int],
    dtype: str,
    expanded_from: int,
    fp8: bool,
    seed: int,
) -> None:
    given = make(sequences, page_size, heads, widths, dtype, seed)
    given = replace(given, cache=narrow(given.cache)) if fp8 else given
    if len(given.content):
        agree(given, dtype, expanded_from)


@pytest.mark.slow
@few_wide
@given(
    sequences=st.tuples(st.tuples(st.integers(0, 1000), st.integers(1, 300)), st.tuples(st.integers(0, 200), st.integers(1, 8))).map(list),
    page_size=st.sampled_from([32, 64]),
    heads=st.just(8),
    dtype=st.sampled_from(["bf16", "f16"]),
    expanded_from=st.sampled_from([1, 171]),
    seed=st.integers(0, 2**31),
)
def test_expanded_attention_of_real_widths(
    sequences: list[tuple[int, int]], page_size: int, heads: int, dtype: str, expanded_from: int, seed: int
) -> None:
    agree(make(sequences, page_size, heads, (128, 64, 512, 128), dtype, seed), dtype, expanded_from)


@pytest.mark.slow
def test_more_heads_than_are_worked_on_at_a_time() -> None:
    agree(make([(40, 33), (0, 3)], 32, 16, (128, 16, 24, 128), "bf16", 0), "bf16", 30)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_rank_takes_its_own_sequences(shard: int) -> None:
    given = make([(9, 6), (40, 6)], 16, 2, (16, 8, 24, 16), "f32", 0)
    whole = agree(given, "f32", 4)
    own = slice(6 * shard, 6 * shard + 6)
    given.content, given.rotated, given.step = given.content[own], given.rotated[own], (*given.step[:3], shard)
    mine = torch.full_like(whole[own], torch.nan)
    lookup("ts::expanded_attention", "triton").function(*given.operands(mine), scale=SCALE, expanded_from=4)
    torch.testing.assert_close(mine, whole[own], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["triton", "reference"])
def test_both_halves_are_all_rows_absorbed(kernel: str) -> None:
    given = make([(30, 5), (20, 2), (0, 9)], 16, 4, (16, 8, 24, 16), "f32", 3)
    [absorbed, *rest] = given.absorbed()
    rest = [x.float() if isinstance(x, Tensor) and x.dtype == torch.float64 else x for x in rest]
    whole = op_named("ts::latent_attention").reference(*given.absorbed(), scale=SCALE, window=0)
    q, shape = absorbed.float(), tuple(absorbed.shape)
    some = run("ts::latent_attention", q, *rest, shape=shape, dtype=q.dtype, kernel=kernel, scale=SCALE, window=0, expanded_from=5)
    assert not some[:5].any()
    assert not some[7:].any()
    result = torch.einsum("thc,hec->the", some, given.v_up).contiguous()
    lookup("ts::expanded_attention", kernel).function(*given.operands(result), scale=SCALE, expanded_from=5)
    torch.testing.assert_close(result.double(), torch.einsum("thc,hec->the", whole, wide(given.v_up)), rtol=0, atol=2e-5)
