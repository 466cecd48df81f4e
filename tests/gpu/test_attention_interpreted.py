"""Attention kernels against references in f64: ragged sequences, keys in splits, pages smaller than tiles, windows, caps, sinks, fp8."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gpu.against_float64 import DTYPES, run, wide
from tests.kernels.test_attention import Step, make_step
from torch import Tensor

from tskernels.fp8_cache import narrow
from tskernels.gpu import combination
from tskernels.registry import lookup, op_named

OFF = {"bf16": 2.0**-6, "f16": 2.0**-9, "f32": 2.0**-18}
"""Of the largest value: weights are rounded to the type of the values, and the result is; either by up to a unit."""
few = settings(deadline=None, max_examples=4)
many = settings(deadline=None, max_examples=15)
sequences = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 8)).filter(any), min_size=1, max_size=4)


def agree(op: str, operands: list[Tensor | int], values: Tensor, dtype: str, **attributes: Any) -> None:
    q = operands[0]
    assert isinstance(q, Tensor)
    expected = op_named(op).reference(*map(wide, operands), **attributes)
    kernel = "triton_fp8_cache" if any(isinstance(x, Tensor) and x.dtype == torch.float8_e4m3fn for x in operands) else "triton"
    result = run(op, *operands, shape=tuple(q.shape), dtype=q.dtype, kernel=kernel, **attributes)
    largest = float(values[~values.isnan()].abs().max())
    assert float((result.double() - expected).abs().max()) <= OFF[dtype] * largest


def agree_on_heads(step: Step, dtype: str, window: int, softcap: float, sinks: bool, fp8: bool = False) -> None:
    step = replace(step, cache=narrow(step.cache)) if fp8 else step
    joint = torch.cat((step.q.flatten(1), torch.zeros(len(step.q), 16, dtype=step.q.dtype)), 1)
    q = joint[:, : step.q[0].numel()].view(step.q.shape)  # part of a joint product
    operands: list[Tensor | int] = [q, *(step.with_sinks() if sinks else step.operands())[1:]]
    op = "ts::sink_attention" if sinks else "ts::attention"
    agree(op, operands, step.cache.to(step.q.dtype), dtype, scale=0.3, window=window, softcap=softcap)


@few
@given(
    sequences=sequences,
    page_size=st.sampled_from([1, 16, 32]),
    heads=st.sampled_from([(1, 1), (2, 3), (1, 17), (3, 2)]),
    width=st.sampled_from([8, 24, 64]),
    dtype=st.sampled_from(sorted(DTYPES)),
    window=st.sampled_from([0, 0, 1, 20]),
    softcap=st.sampled_from([0.0, 0.0, 2.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: tuple[int, int],
    width: int,
    dtype: str,
    window: int,
    softcap: float,
    sinks: bool,
    seed: int,
) -> None:
    step = make_step(sequences, page_size=page_size, K=heads[0], G=heads[1], E=width, dtype=dtype, seed=seed)
    if len(step.q):
        agree_on_heads(step, dtype, window, softcap, sinks)


@pytest.mark.parametrize(("dtype", "sinks"), [("bf16", False), ("f16", True)])
def test_a_prompt_beside_a_long_decode(dtype: str, sinks: bool) -> None:
    step = make_step([(0, 40), (300, 1), (5, 2)], page_size=16, K=2, G=4, E=32, dtype=dtype)
    agree_on_heads(step, dtype, 0, 0.0, sinks)


@pytest.mark.parametrize("page_size", [1, 8, 16, 24])
@pytest.mark.parametrize(("before", "new"), [(109, 1), (300, 40)])
def test_pages_wholly_before_a_window_may_have_become_anothers(page_size: int, before: int, new: int) -> None:
    window = 20
    step = make_step([(before, new)], page_size=page_size, K=1, G=4, E=32, dtype="bf16")
    step.cache[step.tables[0, : (before - window + 1) // page_size].long()] = torch.nan
    agree_on_heads(step, "bf16", window, 0.0, False)
    agree_on_heads(step, "bf16", window, 0.0, True)
    step = make_step([(before, new)], page_size=page_size, K=1, G=2, E=96, dtype="bf16")
    step.cache[step.tables[0, : (before - window + 1) // page_size].long()] = torch.nan
    operands = latent(step, 64)
    assert isinstance(operands[2], Tensor)
    agree("ts::latent_attention", operands, operands[2][..., :64], "bf16", scale=0.2, window=window)


@pytest.mark.parametrize("sinks", [False, True])
def test_more_parts_than_are_combined_at_once(sinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combination, "_AT_ONCE", 2 * 4 * 32)
    step = make_step([(700, 2)], page_size=16, K=1, G=4, E=32, dtype="f32")
    agree_on_heads(step, "f32", 0, 0.0, sinks)


def latent(step: Step, width: int) -> list[Tensor | int]:
    q, cache = step.q[:, 0], step.cache[:, :, 0, 0].contiguous()
    return [q[..., :width], q[..., width:], cache, step.spans, step.lengths, step.tables, 0]


def agree_on_latents(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: int,
    width: int,
    dtype: str,
    window: int,
    seed: int,
    fp8: bool = False,
) -> None:
    step = make_step(sequences, page_size=page_size, K=1, G=heads, E=width + width // 8, dtype=dtype, seed=seed)
    step = replace(step, cache=narrow(step.cache)) if fp8 else step
    if len(step.q):
        agree("ts::latent_attention", latent(step, width), step.cache.to(step.q.dtype), dtype, scale=0.1, window=window)


@few
@given(
    sequences=sequences,
    page_size=st.sampled_from([1, 32, 64]),
    heads=st.sampled_from([1, 5, 8, 16, 24]),
    width=st.sampled_from([24, 64]),
    dtype=st.sampled_from(sorted(DTYPES)),
    window=st.sampled_from([0, 0, 10]),
    seed=st.integers(0, 2**31),
)
def test_latent_attention(
    sequences: list[tuple[int, int]], page_size: int, heads: int, width: int, dtype: str, window: int, seed: int
) -> None:
    agree_on_latents(sequences, page_size, heads, width, dtype, window, seed)


@pytest.mark.parametrize("page_size", [8, 16, 48, 64, 128])
def test_latents_of_several_tiles_in_whole_pages_and_parts_of_them(page_size: int) -> None:
    agree_on_latents([(330, 1), (190, 5), (0, 70)], page_size, 16, 64, "bf16", 0, 0)


@few
@given(
    sequences=sequences,
    page_size=st.sampled_from([1, 16, 32]),
    heads=st.sampled_from([(1, 17), (2, 3)]),
    width=st.sampled_from([8, 24, 64]),
    dtype=st.sampled_from(sorted(DTYPES)),
    window=st.sampled_from([0, 0, 20]),
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_caches_in_fp8(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: tuple[int, int],
    width: int,
    dtype: str,
    window: int,
    sinks: bool,
    seed: int,
) -> None:
    step = make_step(sequences, page_size=page_size, K=heads[0], G=heads[1], E=width, dtype=dtype, seed=seed)
    if len(step.q):
        agree_on_heads(step, dtype, window, 0.0, sinks, fp8=True)
    agree_on_latents(sequences, page_size, heads[1], width, dtype, window, seed, fp8=True)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_what_is_appended_in_fp8_has_the_bytes_that_every_kernel_writes(dtype: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 120) * 2.0 ** torch.randint(-12, 11, (5, 2, 120))
    x[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 460.0])
    halves = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x[1, 1] = ((halves[1:] + halves[:-1]) / 2)[:120]
    x = x.to(DTYPES[dtype])
    slots = torch.tensor([40, 3, 17, 0, 25], dtype=torch.int32)
    for op, shape, new in (
        ("ts::cache_append", (3, 16, 2, 2, 120), (x, x.flip(0).contiguous())),
        ("ts::latent_append", (3, 16, 240), (x.flatten(1)[:, :200], x.flatten(1)[:, 200:])),
    ):
        caches = [torch.zeros(shape, dtype=torch.float8_e4m3fn) for _ in range(2)]
        for cache, kernel in zip(caches, ("torch_fp8", "triton_fp8_cache"), strict=True):
            lookup(op, kernel).function(cache, *new, slots)
        assert torch.equal(caches[0].view(torch.uint8), caches[1].view(torch.uint8))


@pytest.mark.slow
@many
@given(
    sequences=st.lists(st.tuples(st.integers(0, 600), st.integers(1, 8)), min_size=1, max_size=3),
    page_size=st.sampled_from([32, 64]),
    heads=st.sampled_from([8, 12, 16, 32, 128]),
    dtype=st.sampled_from(["bf16", "f16"]),
    fp8=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_latent_attention_of_real_widths(
    sequences: list[tuple[int, int]], page_size: int, heads: int, dtype: str, fp8: bool, seed: int
) -> None:
    agree_on_latents(sequences, page_size, heads, 512, dtype, 0, seed, fp8=fp8)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_rows_that_pad_a_step_are_zeros(dtype: str) -> None:
    step = make_step([(3, 2), (0, 1)], page_size=16, K=2, G=2, E=16, dtype=dtype)
    q = torch.cat((step.q, step.q, step.q))
    spans, lengths = torch.cat((step.spans, torch.tensor([[9, 9]]).int())), torch.cat((step.lengths, torch.tensor([0]).int()))
    tables = torch.cat((step.tables, step.tables[:1]))
    result = run(
        "ts::attention", q, step.cache, spans, lengths, tables, 0, shape=tuple(q.shape), dtype=q.dtype, scale=0.3, window=0, softcap=0.0
    )
    assert not result[3:].any()
    assert result[:3].all()


def test_a_rank_takes_its_own_sequences() -> None:
    step = make_step([(3, 2), (20, 2)], page_size=16, K=1, G=2, E=16)
    whole = run("ts::attention", *step.operands(), shape=tuple(step.q.shape), dtype=step.q.dtype, scale=0.3, window=0, softcap=0.0)
    for shard in (0, 1):
        q = step.q[2 * shard : 2 * shard + 2]
        operands = (q, *step.operands()[1:5], shard)
        mine = run("ts::attention", *operands, shape=tuple(q.shape), dtype=q.dtype, scale=0.3, window=0, softcap=0.0)
        torch.testing.assert_close(mine, whole[2 * shard : 2 * shard + 2], rtol=0, atol=1e-6)
