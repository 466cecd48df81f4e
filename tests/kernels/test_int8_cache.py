"""A cache in bytes: what a vector becomes, the same to the bit whoever writes it, and what attention makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.int8_pages import empty_pages, pages_of
from tests.kernels.test_attention import TOLERANCE, Step, decodes, make_step, only, sequences

from tskernels.attention import attention
from tskernels.cache_layouts import CACHE_LAYOUTS, INT8_CACHE
from tskernels.dtypes import torch_dtype
from tskernels.int8_cache import attention_int8, cache_append_int8, dequantize, quantize
from tskernels.registry import Call, Operand, explain, lookup
from tskernels.simd import is_available
from tskernels.target import CPU, parse_target

native = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")
ISAS = ("avx512_bf16", "avx512", "avx2")
generated = settings(deadline=None, max_examples=60)
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@generated
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40))
def test_an_element_is_off_by_half_a_step_at_most(elements: list[float]) -> None:
    x = torch.tensor(elements)
    codes, scale = quantize(x)
    assert int(codes.max()) <= 127
    assert int(codes.min()) >= -127
    error = (codes.double() * scale.double() - x.double()).abs().max()
    # The scale is rounded, and so are quotients; below the smallest scale nothing is left.
    assert error <= scale.double() * (0.5 + 2.0**-16) + (127 * torch.finfo(torch.float32).tiny if scale == 0 else 0)


def test_the_scale_is_a_127th_of_the_largest_magnitude_and_ties_go_to_even() -> None:
    codes, scale = quantize(torch.tensor([254.0, 1.0, 3.0, -5.0, -254.0, 0.9]))
    assert float(scale) == 2.0
    assert codes.tolist() == [127, 0, 2, -2, -127, 0]


def test_what_is_not_finite_is_found_out_and_what_is_too_small_is_zero() -> None:
    codes, scales = quantize(torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [0.0, 0.0], [1e-38, -1e-40]]))
    assert not codes.any()
    np.testing.assert_array_equal(scales.numpy(), np.array([np.nan, np.nan, 0, 0], np.float32))


def test_a_token_takes_a_byte_an_element_and_four_a_vector() -> None:
    assert CACHE_LAYOUTS[INT8_CACHE].stored("bf16", (2, 3, 64)) == ("u8", (2 * 3 * 68,))
    assert not CACHE_LAYOUTS[INT8_CACHE].takes("bf16", (576,)), "a latent row"
    assert not CACHE_LAYOUTS[INT8_CACHE].takes("bf16", (2, 3, 7))


@native
@generated
@given(
    elements=st.lists(numbers, min_size=1, max_size=60),
    sizes=st.tuples(st.integers(1, 3), st.sampled_from([2, 8, 20, 64, 82]), st.sampled_from([1, 3, 16])),
    dtype=st.sampled_from(["f32", "bf16"]),
    seed=st.integers(0, 2**31),
)
def test_every_kernel_writes_the_same_bytes(elements: list[float], sizes: tuple[int, int, int], dtype: str, seed: int) -> None:
    from tskernels import _cpu

    K, E, page_size = sizes
    torch.manual_seed(seed)
    joint = torch.randn(7, 2 * K * E + 5) * 10.0 ** torch.randint(-30, 30, (7, 1))
    joint.view(-1)[torch.randperm(joint.numel())[: len(elements)]] = torch.tensor(elements)[: joint.numel()]
    joint = joint.to(torch_dtype(dtype))  # keys and values are views of a fused projection
    k, v = (joint[:, start : start + K * E].view(7, K, E) for start in (5, 5 + K * E))
    slots = torch.randperm(4 * page_size + 7)[:7].int()
    expected = cache_append_int8(empty_pages(5 + 7, page_size, K, E), k, v, slots)
    kept = dequantize(expected, K, E, torch.float64).flatten(0, 1)
    assert not kept[[slot for slot in range(len(kept)) if slot not in slots.tolist()]].any()
    for index, given_ in enumerate((k, v)):
        codes, scales = quantize(given_)
        written = codes.double() * scales[..., None].double()
        assert torch.equal(kept[slots.long(), index].nan_to_num(7), written.nan_to_num(7))
    before = _cpu.isa()
    assert before is not None
    try:
        for isa in filter(_cpu.has_isa, ISAS):
            _cpu.use_isa(isa)
            found = lookup("ts::cache_append", "simd_int8").function(empty_pages(5 + 7, page_size, K, E), k, v, slots)
            assert torch.equal(found, expected), isa
    finally:
        _cpu.use_isa(before)


def run(step: Step, window: int, softcap: float, scale: float, shard: int = 0) -> torch.Tensor:
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype)
    attention_int8(
        step.q, pages_of(step.cache), step.spans, step.lengths, step.tables, shard, scale=scale, window=window, softcap=softcap, out=out
    )
    return out


@generated
@given(
    sequences=st.one_of(sequences, decodes),
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([4, 8, 20, 64])),
    dtype=st.sampled_from(["f32", "bf16"]),
    window=st.sampled_from([0, 1, 3, 8, 100]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 2**31),
)
def test_torch_attends_to_what_the_bytes_stand_for(
    sequences: list[tuple[int, int]], page_size: int, heads: tuple[int, int, int], dtype: str, window: int, softcap: float, seed: int
) -> None:
    K, G, E = heads
    step = make_step(sequences, page_size=page_size, K=K, G=G, E=E, dtype=dtype, seed=seed)
    kept = dequantize(pages_of(step.cache), K, E, torch.float64)
    expected = attention(step.q.double(), kept, step.spans, step.lengths, step.tables, 0, scale=0.3, window=window, softcap=softcap)
    result = run(step, window, softcap, 0.3)
    torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])
    for sequence in range(len(sequences)):
        assert torch.equal(run(only(step, sequence), window, softcap, 0.3), result[slice(*step.spans[sequence].tolist())])


def test_torch_gives_zeros_to_rows_of_no_sequence_and_a_shard_its_own() -> None:
    step = make_step([(3, 2), (30, 1), (0, 3)])
    whole = run(step, 0, 0.0, 0.3)
    step.q = step.q[3:]
    assert torch.equal(run(step, 0, 0.0, 0.3, shard=1), whole[3:])
    step.spans = torch.zeros_like(step.spans)
    assert not run(step, 0, 0.0, 0.3).any()


def cached(op: str, layout: str, dtype: str = "bf16") -> Call:
    rows = Operand(dtype, (None, 2, 64))
    cache = Operand(dtype, (None, None, 2, 2, 64), layout)
    ints, table = Operand("i32", (None,)), Operand("i32", (None, None))
    if op == "ts::cache_append":
        return Call(op, (cache, rows, rows, ints))
    return Call(op, (Operand(dtype, (None, 2, 3, 64)), cache, table, ints, table), {"scale": 1.0, "window": 0, "softcap": 0.0})


@pytest.mark.parametrize("op", ["ts::cache_append", "ts::attention"])
def test_only_kernels_of_the_layout_are_given_it(op: str) -> None:
    for target in (CPU, parse_target("cpu")):
        can = [c.kernel.name for c in explain(cached(op, INT8_CACHE), target) if c.reason is None]
        assert set(can) == {"torch_int8", *(["simd_int8"] if is_available() and target != CPU else [])}
        assert not any(c.kernel.name.endswith("int8") for c in explain(cached(op, "rows"), target) if c.reason is None)
