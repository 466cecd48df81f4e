"""Keys order like numbers and then earlier indices; what is written with them is argmax, top-k and softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.registry import lookup
from tskernels.rows import divide_rows, exp_minus, key_index, key_value, max_key, merge_keys, row_max, row_sum, top_keys

numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -1.5, 3e38, -3e38, 1e-45, -1e-45, 2.0**-126, 7.25])
rows = st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=n, max_size=n))
generated = settings(deadline=None, max_examples=100)


def filled(op: str, *operands: Tensor, out: Tensor, **attributes: object) -> Tensor:
    lookup(op, "torch").function(*operands, **attributes, out=out)
    return out


@generated
@given(x=rows)
def test_the_largest_key_is_numpys_argmax(x: list[list[float]]) -> None:
    values = torch.tensor(x)
    keys = max_key(values, 0)
    assert key_index(keys).tolist() == np.argmax(values.numpy(), -1).tolist()
    assert torch.equal(key_value(keys), values.amax(-1) + 0.0)
    assert torch.equal(filled("ts::max_key", values, shard=0, out=torch.empty_like(keys)), keys)


@generated
@given(x=rows, dtype=st.sampled_from(["f32", "bf16"]), k=st.integers(1, 3))
def test_the_best_of_blocks_are_the_best_of_all(x: list[list[float]], dtype: str, k: int) -> None:
    values = torch.tensor(x).to(torch_dtype(dtype))
    order = np.argsort(-(values.float().numpy().astype(np.float64) + 0.0), axis=-1, kind="stable")[:, :k]
    for width in (6, 3):
        best = top_keys(values, 0, k, width)
        assert best.shape == (len(x), 6 // width, k)
        merged = merge_keys(best)
        assert key_index(merged).tolist() == order.tolist()
        assert torch.equal(filled("ts::top_keys", values, shard=0, k=k, width=width, out=torch.empty_like(best)), best)
        assert torch.equal(filled("ts::merge_keys", best, out=torch.empty_like(merged)), merged)


def test_ranks_find_what_one_device_finds() -> None:
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    parts = [max_key(part, rank) for rank, part in enumerate(x.chunk(3, -1))]
    assert torch.equal(torch.stack(parts).amax(0), max_key(x, 0))
    candidates = torch.cat([top_keys(part, rank, 2, 4) for rank, part in enumerate(x.chunk(3, -1))], -2)
    assert torch.equal(candidates, top_keys(x, 0, 2, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_told(bad: float) -> None:
    x = torch.tensor([[1.0, bad, 2.0], [1.0, 2.0, -math.inf]])
    for keys in (max_key(x, 0), filled("ts::max_key", x, shard=0, out=torch.empty(2, dtype=torch.int64))):
        assert key_index(keys).tolist() == [-1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_softmax_in_steps(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0)).to(dtype) * 20
    weights = exp_minus(x, row_max(x))
    made = divide_rows(weights, row_sum(weights))
    wide = x if dtype == torch.float64 else x.float()
    torch.testing.assert_close(made, wide.softmax(-1), rtol=1e-5 if wide.dtype == torch.float32 else 1e-12, atol=0)
    largest = filled("ts::row_max", x, out=torch.empty(3, 4, dtype=wide.dtype))
    assert torch.equal(largest, row_max(x))
    assert torch.equal(filled("ts::exp_minus", x, largest, out=torch.empty_like(wide)), weights)
    torch.testing.assert_close(filled("ts::row_sum", weights, out=torch.empty_like(largest)), row_sum(weights))
    assert torch.equal(filled("ts::divide_rows", weights, row_sum(weights), out=torch.empty_like(wide)), made)
