"""Every kernel that is not a reference against its reference, over generated shapes, element types and strides.

Attention has its own file.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.registry import lookup, op_named, ops
from tskernels.rope import rope_torch

# Kernel and reference each round once from f32 values that agree to a few of f32's own units: at most one unit of the
# result's type apart, bf16 2^-7 relative, f32 a few 2^-23.
RELATIVE = {"f32": 2.0**-21, "bf16": 2.0**-7}
# Where terms cancel, the error is relative to them, not to the result; the inputs here are of order one.
ABSOLUTE = {"f32": 2.0**-20, "bf16": 2.0**-8}

sizes = st.integers(1, 33)
dtypes = st.sampled_from(["f32", "bf16"])
seeds = st.integers(0, 2**31)
generated = settings(deadline=None, max_examples=40)


def normal(dtype: str, *shape: int, strided: bool = False) -> Tensor:
    if strided:  # part of a wider buffer, as a narrow of a fused projection is
        return torch.randn(*shape[:-1], shape[-1] + 7).to(torch_dtype(dtype))[..., 3 : 3 + shape[-1]]
    return torch.randn(*shape).to(torch_dtype(dtype))


def agree(op: str, operands: tuple[Tensor, ...], **attributes: object) -> None:
    expected = op_named(op).reference(*operands, **attributes)
    out = torch.full_like(expected, torch.nan)
    lookup(op, "torch").function(*operands, **attributes, out=out)
    name = "bf16" if out.dtype == torch.bfloat16 else "f32"
    torch.testing.assert_close(out, expected, rtol=RELATIVE[name], atol=ABSOLUTE[name])


def equal(op: str, operands: tuple[Tensor, ...], **attributes: object) -> None:
    expected = op_named(op).reference(*operands, **attributes)
    out = torch.full_like(expected, torch.nan)
    lookup(op, "torch").function(*operands, **attributes, out=out)
    assert torch.equal(out, expected)


def test_every_compute_op_has_a_kernel_beside_its_reference() -> None:
    compute = [name for name in ops() if op_named(name).kind in ("compute", "inplace")]
    for name in ("expanded_attention", "add_norm", "qk_rope", "qk_norm_rope"):  # which are there only where a target's own kernel is
        compute.remove(f"ts::{name}")
    assert [lookup(name, "torch").op for name in compute] == compute


@generated
@given(tokens=sizes, vocabulary=sizes, width=sizes, shard=st.integers(0, 3), dtype=dtypes, seed=seeds)
def test_embedding(tokens: int, vocabulary: int, width: int, shard: int, dtype: str, seed: int) -> None:
    torch.manual_seed(seed)
    table = normal(dtype, vocabulary, width)
    table[0] = torch.inf
    ids = torch.randint(0, 4 * vocabulary, (tokens,), dtype=torch.int32)
    equal("ts::embedding", (ids, table), shard=shard)


@generated
@given(tokens=sizes, width=sizes, rows=sizes, dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_take_rows(tokens: int, width: int, rows: int, dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, 2, width, strided=strided)
    equal("ts::take_rows", (x, torch.randint(0, tokens, (rows,), dtype=torch.int32)))


@generated
@given(tokens=sizes, inner=sizes, outer=sizes, dtype=dtypes, strided=st.booleans(), bias=st.booleans(), deep=st.booleans(), seed=seeds)
def test_linear(tokens: int, inner: int, outer: int, dtype: str, strided: bool, bias: bool, deep: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, *([3] if deep else []), inner, strided=strided)
    # 1/sqrt(inner): the products' sum stays of order one, and so does what cancels in it.
    w = normal(dtype, outer, inner) / inner**0.5
    agree("ts::linear", (x, w, *([normal(dtype, outer)] if bias else [])))


@generated
@given(
    tokens=sizes,
    inner=sizes,
    outer=sizes,
    activation=st.sampled_from(["silu", "gelu", "gelu_tanh"]),
    dtype=dtypes,
    strided=st.booleans(),
    deep=st.booleans(),
    seed=seeds,
)
def test_gated_linear(tokens: int, inner: int, outer: int, activation: str, dtype: str, strided: bool, deep: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, *([3] if deep else []), inner, strided=strided)
    operands = x, normal(dtype, 2 * outer, inner) / inner**0.5
    expected = op_named("ts::gated_linear").reference(*operands, activation)
    out = torch.full_like(expected, torch.nan)
    lookup("ts::gated_linear", "torch").function(*operands, activation=activation, out=out)
    # of bf16 the products are rounded before the activation, too: a unit each beside that of the result
    torch.testing.assert_close(out, expected, rtol=3 * RELATIVE[dtype], atol=3 * ABSOLUTE[dtype])


@generated
@given(tokens=sizes, width=sizes, dtype=dtypes, offset=st.sampled_from([0.0, 1.0]), strided=st.booleans(), seed=seeds)
def test_rms_norm(tokens: int, width: int, dtype: str, offset: float, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, 2, width, strided=strided)
    agree("ts::rms_norm", (x, normal(dtype, width)), eps=1e-6, offset=offset)


@generated
@given(tokens=sizes, width=sizes, dtype=dtypes, offset=st.sampled_from([0.0, 1.0]), strided=st.booleans(), seed=seeds)
def test_rms_norm_rows(tokens: int, width: int, dtype: str, offset: float, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, w = normal(dtype, tokens, 2, width, strided=strided), normal(dtype, 2, width)
    squares = torch.full((tokens,), torch.nan)
    lookup("ts::row_squares", "torch").function(x, out=squares)
    torch.testing.assert_close(squares, x.float().square().sum((1, 2)))
    agree("ts::rms_scale", (x, squares, w), eps=1e-6, offset=offset, count=2 * width)


@generated
@given(
    tokens=sizes,
    heads=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    half=st.integers(1, 40),
    longest=st.sampled_from([2, 1000, 5000]),
    kind=st.sampled_from(
        [("default", ()), ("linear", (4.0,)), ("llama3", (8.0, 1.0, 4.0, 256.0)), ("yarn", (40.0, 64.0, 32.0, 1.0, 1.3, 1.0))]
    ),
    staying=st.sampled_from([0, 0, 1, 2, 24]),
    interleaved=st.booleans(),
    dtype=dtypes,
    strided=st.booleans(),
    seed=seeds,
)
def test_rope_has_the_references_bits(
    tokens: int,
    heads: list[int],
    half: int,
    longest: int,
    kind: tuple[str, tuple[float, ...]],
    staying: int,
    interleaved: bool,
    dtype: str,
    strided: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    width = 2 * half + staying
    x = normal(dtype, tokens, *heads, width, strided=strided)
    positions = torch.randint(0, longest, (tokens,), dtype=torch.int32)
    # Of a fraction what is left over is cut off, as transformers does: 62 / 86 of 86 may be 61.
    turning = {"interleaved": interleaved, "fraction": (2 * half + 0.5) / width if staying else 1.0}
    equal("ts::rope", (x, positions), theta=10000.0, kind=kind[0], parameters=kind[1], **turning)


def test_rope_past_the_table() -> None:
    x = torch.randn(2, 16)
    for last in (3, 1023, 1024, 70000, 1_000_000):  # each but the second is past what the one before needed
        equal("ts::rope", (x, torch.tensor([1, last], dtype=torch.int32)), theta=7777.0, kind="default", parameters=(), interleaved=False)


def test_rope_refuses_a_negative_position() -> None:
    x = torch.randn(1, 16)
    with pytest.raises(IndexError):
        rope_torch(x, torch.tensor([-1], dtype=torch.int32), 7777.0, "default", (), False, out=x.clone())


@generated
@given(shape=st.lists(sizes, min_size=1, max_size=3), dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_elementwise(shape: list[int], dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = normal(dtype, *shape, strided=strided), normal(dtype, *shape)
    for op in ("ts::add", "ts::mul"):
        equal(op, (x, y))
    for op in ("ts::silu", "ts::sigmoid", "ts::gelu", "ts::gelu_tanh"):
        agree(op, (x * 4,))
    equal("ts::scale", (x,), factor=1.7)
    equal("ts::scale_rows", (x, y[..., :1]))


@generated
@given(shape=st.lists(sizes, min_size=1, max_size=3), seed=seeds)
def test_softcap(shape: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(*shape) * 3
    agree("ts::softcap", (x,), cap=2.5)


@generated
@given(tokens=st.integers(1, 12), page_size=st.integers(1, 5), heads=st.integers(1, 3), dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_cache_append(tokens: int, page_size: int, heads: int, dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    cache = normal(dtype, 12, page_size, 2, heads, 4)
    expected = cache.clone()
    k, v = normal(dtype, tokens, heads, 4, strided=strided), normal(dtype, tokens, heads, 4, strided=strided)
    slots = torch.randperm(12 * page_size)[:tokens].int()
    op_named("ts::cache_append").reference(expected, k, v, slots)
    assert lookup("ts::cache_append", "torch").function(cache, k, v, slots=slots) is cache
    assert torch.equal(cache, expected)


@generated
@given(tokens=sizes, heads=st.integers(1, 4), inner=sizes, outer=sizes, dtype=dtypes, strided=st.booleans(), flip=st.booleans(), seed=seeds)
def test_einsum(tokens: int, heads: int, inner: int, outer: int, dtype: str, strided: bool, flip: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, heads, inner, strided=strided)
    w = normal(dtype, heads, *((outer, inner) if flip else (inner, outer))) / inner**0.5
    agree("ts::einsum", (x, w), equation="the,hce->thc" if flip else "the,hec->thc")


@generated
@given(
    tokens=sizes,
    groups=st.integers(1, 4),
    size=st.integers(2, 4),
    score=st.sampled_from(["softmax", "sigmoid"]),
    biased=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
def test_route(tokens: int, groups: int, size: int, score: str, biased: bool, dtype: str, seed: int) -> None:
    torch.manual_seed(seed)
    operands = (normal(dtype, tokens, groups * size), *([torch.randn(groups * size)] if biased else []))
    choice = {"top_k": 2, "score": score, "normalize": True, "scale": 2.5, "groups": groups, "top_groups": 1, "group_best": 2}
    equal("ts::route", operands, **choice)


@generated
@given(tokens=sizes, number=st.integers(1, 6), inner=sizes, width=sizes, dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_experts(tokens: int, number: int, inner: int, width: int, dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, width, strided=strided)
    weights = (torch.rand(tokens, number) * (torch.rand(tokens, number) < 0.5)).to(x.dtype)
    gate, up, down = (normal(dtype, number, *s) / s[1] ** 0.5 for s in ((inner, width), (inner, width), (width, inner)))
    expected = op_named("ts::experts").reference(x, weights, gate, up, down)
    out = torch.full_like(expected, torch.nan)
    lookup("ts::experts", "torch").function(x, weights, gate, up, down, out=out)
    # bf16: gate, up, their product and each expert's result are rounded before the sum
    tolerance = {"f32": 2.0**-18, "bf16": number * 2.0**-6}[dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@generated
@given(tokens=st.integers(1, 12), page_size=st.integers(1, 5), dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_latent_append(tokens: int, page_size: int, dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    cache = normal(dtype, 12, page_size, 9)
    expected = cache.clone()
    rows = normal(dtype, tokens, 6, strided=strided), normal(dtype, tokens, 3, strided=strided)
    slots = torch.randperm(12 * page_size)[:tokens].int()
    op_named("ts::latent_append").reference(expected, *rows, slots)
    assert lookup("ts::latent_append", "torch").function(cache, *rows, slots=slots) is cache
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("change", [lambda out: out.double(), lambda out: out[:1]])
def test_reference_kernel_refuses_an_out_of_another_type_or_shape(change: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="silu gives"):
        lookup("ts::silu", "reference").function(x, out=change(torch.empty(2, 3)))


def test_reference_kernel_fills_out() -> None:
    x, out = torch.randn(2, 3), torch.empty(2, 3)
    lookup("ts::scale", "reference").function(x, factor=2.0, out=out)
    assert torch.equal(out, x * 2)
