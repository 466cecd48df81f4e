"""The native kernels of keys and of softmax in steps against their references, on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.test_simd_kernels import TEAMS, call, dtypes, generated, isa, normal, seeds, widths
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.registry import op_named
from tskernels.simd import SIMD, TABLE

__all__ = ["isa"]  # a fixture of every test here

SPECIAL = [0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45, math.inf, -math.inf, math.nan, -math.nan]


def results(op: str, operands: Sequence[Tensor], **attributes: object) -> tuple[Tensor, list[Tensor]]:
    """What the reference gives, and what the kernel does with each team."""
    expected = op_named(op).reference(*operands, **attributes)
    kernel = TABLE[op, SIMD]
    numbers = kernel.numbers(attributes)
    return expected, [call(kernel.symbol, operands, torch.full_like(expected, 77), numbers, workers) for workers in TEAMS]


def equal(op: str, operands: Sequence[Tensor], **attributes: object) -> Tensor:
    expected, found = results(op, operands, **attributes)
    for result in found:
        assert torch.equal(result, expected)
    return expected


def few(dtype: str, seed: int, *shape: int) -> Tensor:
    """Numbers of which many are equal, and some are none."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(SPECIAL if seed % 2 else SPECIAL[:6])
    return values[torch.randint(len(values), shape, generator=generator)].to(torch_dtype(dtype))


def same_numbers(keys: Tensor) -> Tensor:
    expected, found = results("ts::key_value", [keys])
    for result in found:
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    return found[0]


@generated
@given(rows=st.integers(1, 9), width=widths, dtype=dtypes, shard=st.integers(0, 3), seed=seeds)
def test_max_key(rows: int, width: int, dtype: str, shard: int, seed: int) -> None:
    for x in (few(dtype, seed, rows, width), normal(dtype, rows, 2, width), normal(dtype, rows, width, strided=True)):
        keys = equal("ts::max_key", [x], shard=shard)
        equal("ts::key_index", [keys])
        same_numbers(keys)


@generated
@given(rows=st.integers(1, 9), blocks=st.integers(1, 4), width=st.integers(1, 40), dtype=dtypes, data=st.data(), seed=seeds)
def test_top_keys(rows: int, blocks: int, width: int, dtype: str, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, width))
    for x in (few(dtype, seed, rows, blocks * width), normal(dtype, rows, 2, blocks * width)):
        equal("ts::merge_keys", [equal("ts::top_keys", [x], shard=1, k=k, width=width)])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_key_value_gives_back_the_number(dtype: str) -> None:
    x = torch.tensor(SPECIAL).to(torch_dtype(dtype))
    found = same_numbers(equal("ts::max_key", [x[:, None]], shard=0))
    torch.testing.assert_close(found, x.float() + 0.0, rtol=0, atol=0, equal_nan=True)


@generated
@given(rows=st.integers(1, 9), width=widths, dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_softmax_in_steps(rows: int, width: int, dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, rows, 3, width, strided=strided)
    largest = equal("ts::row_max", [x])
    expected, found = results("ts::exp_minus", [x, largest])
    for result in found:
        torch.testing.assert_close(result, expected, rtol=4e-7, atol=1e-38)
    weights = found[0]
    sums, found = results("ts::row_sum", [weights])
    for result in found:
        torch.testing.assert_close(result, sums, rtol=width * 2.0**-24, atol=0)  # numbers of one sign, in any order
    equal("ts::divide_rows", [weights, sums])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("place", [0, 5, 40])
def test_the_largest_of_what_is_not_a_number_is_not_one(place: int, dtype: str) -> None:
    x = torch.zeros(2, 41, dtype=torch_dtype(dtype))
    x[0, place] = torch.nan
    for result in results("ts::row_max", [x])[1]:
        assert result.isnan().tolist() == [True, False]
