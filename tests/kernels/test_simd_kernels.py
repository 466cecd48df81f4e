"""Native kernels against their references in float64, a row's bits in any company, and the screened head, on every instruction set.

Attention has its own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.kernels.bounds import gated_expected, linear_expected
from tests.kernels.test_kernels import ABSOLUTE, RELATIVE
from torch import Tensor

from tskernels.dtypes import dtype_name, torch_dtype
from tskernels.layouts import GATED_PANELS, PANELS, SCREEN, layout
from tskernels.registry import op_named
from tskernels.rope import inverse_frequencies
from tskernels.simd import ACTIVATIONS, SIMD, SIMD_PANELS, TABLE

_cpu = pytest.importorskip("tskernels._cpu", reason="needs the native kernels, which are built for x86-64 alone", exc_type=ImportError)

ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(not _cpu.has_isa(isa), reason=f"needs {isa}")) for isa in ("avx512_bf16", "avx512", "avx2")
]
TEAMS = {workers: _cpu.Team(workers) for workers in (1, 2)}
ELSEWHERE = {
    *product(("ts::attention", "ts::sink_attention", "ts::latent_attention"), (SIMD,)),  # test_simd_attention.py
    *product(("ts::route", "ts::einsum"), (SIMD,)),  # test_simd_mixture.py
    ("ts::experts", SIMD_PANELS),
    # test_shared_memory.py
    *product(("ts::all_reduce", "ts::reduce_scatter", "ts::all_gather", "ts::all_to_all", "ts::local_slice", "ts::keep_first"), (SIMD,)),
    # test_simd_rows.py
    *product(("ts::max_key", "ts::top_keys", "ts::merge_keys", "ts::key_index", "ts::key_value"), (SIMD,)),
    *product(("ts::short_conv", "ts::decay", "ts::gated_delta"), (SIMD,)),  # test_recurrent.py
    *product(("ts::row_max", "ts::row_sum", "ts::exp_minus", "ts::divide_rows"), (SIMD,)),
}
HERE = {
    *product(("ts::linear",), (SIMD, SIMD_PANELS)),
    ("ts::gated_linear", SIMD_PANELS),
    *product(
        (
            "ts::screened_linear",
            "ts::rms_norm",
            "ts::rms_scale",
            "ts::row_squares",
            "ts::rope",
            "ts::silu",
            "ts::sigmoid",
            "ts::gelu",
            "ts::gelu_tanh",
            "ts::scale",
            "ts::scale_rows",
            "ts::softcap",
            "ts::add",
            "ts::mul",
            "ts::embedding",
            "ts::take_rows",
            "ts::cache_append",
            "ts::latent_append",
        ),
        (SIMD,),
    ),
}
_LAYOUTS = {"linear_panels": PANELS, "gated_panels": GATED_PANELS}


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


def operand(tensor: Tensor) -> tuple[str, int, int, int, str, Sequence[int], Sequence[int]]:
    return "fixed", tensor.data_ptr(), 0, 0, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.stride()


def call(symbol: str, operands: Sequence[Tensor], out: Tensor, numbers: Sequence[float] = (), workers: int = 1) -> Tensor:
    _cpu.call(TEAMS[workers], symbol, [operand(x) for x in operands], operand(out), list(numbers), [])
    return out


def run(op: str, operands: Sequence[Tensor], shape: Sequence[int], attributes: Mapping[str, object] = {}, workers: int = 1) -> Tensor:
    """A kernel of the table, called as a program does; the result is of the type of the first float operand."""
    kernel = TABLE[op, SIMD]
    dtype = next(x.dtype for x in operands if x.is_floating_point())
    return call(kernel.symbol, operands, torch.full(tuple(shape), torch.nan, dtype=dtype), kernel.numbers(attributes), workers)


def normal(dtype: str, *shape: int, strided: bool = False) -> Tensor:
    """strided: heads or a whole row that are part of a joint product's row."""
    if not strided:
        return torch.randn(*shape).to(torch_dtype(dtype))
    width = prod(shape[1:])
    joint = torch.randn(shape[0], width + 11).to(torch_dtype(dtype))
    return joint[:, 5 : 5 + width].view(shape)


def wide(operands: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in operands]


def agree(op: str, operands: Sequence[Tensor], dtype: str, **attributes: object) -> None:
    expected = op_named(op).reference(*wide(operands), **attributes)
    for workers in TEAMS:
        result = run(op, operands, expected.shape, attributes, workers)
        torch.testing.assert_close(result.double(), expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype])


def equal(op: str, operands: Sequence[Tensor], **attributes: object) -> None:
    expected = op_named(op).reference(*operands, **attributes)
    for workers in TEAMS:
        assert torch.equal(run(op, operands, expected.shape, attributes, workers), expected)


sizes = st.integers(1, 33)
widths = st.one_of(sizes, st.sampled_from([48, 64, 65, 96]))
dtypes = st.sampled_from(["f32", "bf16"])
seeds = st.integers(0, 2**31)
generated = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_kernel_is_tested_here_or_elsewhere() -> None:
    quantized = {(op, name) for op, name in TABLE if name.startswith(f"{SIMD}_") and name != SIMD_PANELS}  # test_quantized_kernels.py
    assert set(TABLE) - quantized == HERE | ELSEWHERE


@generated
@given(rows=sizes, vectors=st.integers(1, 3), width=widths, dtype=dtypes, seed=seeds)
def test_sigmoid_and_factors_of_rows(rows: int, vectors: int, width: int, dtype: str, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, rows, vectors, width, strided=True)
    agree("ts::sigmoid", (x * 4,), dtype)
    equal("ts::scale_rows", (x, normal(dtype, rows, vectors, 1)))


# ---- products


def in_layout(symbol: str, w: Tensor) -> Tensor:
    return layout(_LAYOUTS[symbol]).pack(w) if symbol in _LAYOUTS else w


@generated
@given(
    tokens=st.one_of(sizes, st.sampled_from([36, 37, 61])),
    inner=widths,
    outer=widths,
    symbol=st.sampled_from(["linear_rows", "linear_panels"]),
    dtype=dtypes,
    strided=st.booleans(),
    bias=st.booleans(),
    heads=st.sampled_from([None, 1, 3]),
    seed=seeds,
)
def test_linear(
    tokens: int, inner: int, outer: int, symbol: str, dtype: str, strided: bool, bias: bool, heads: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, *([] if heads is None else [heads]), inner, strided=strided)
    # 1/sqrt(inner): the products' sum stays of order one, and so does what cancels in it.
    w = normal(dtype, outer, inner) / inner**0.5
    rest = [normal(dtype, outer)] if bias else []
    expected, bound = linear_expected(x, w, *rest)
    for workers in TEAMS:
        out = torch.full(expected.shape, torch.nan, dtype=x.dtype)
        call(symbol, [x, in_layout(symbol, w), *rest], out, workers=workers)
        assert ((out.double() - expected).abs() <= bound).all()


@generated
@given(
    tokens=sizes,
    inner=widths,
    outer=widths,
    activation=st.sampled_from(ACTIVATIONS),
    dtype=dtypes,
    strided=st.booleans(),
    heads=st.sampled_from([None, 1, 3]),
    seed=seeds,
)
def test_gated_linear(
    tokens: int, inner: int, outer: int, activation: str, dtype: str, strided: bool, heads: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, *([] if heads is None else [heads]), inner, strided=strided)
    w = normal(dtype, 2 * outer, inner) / inner**0.5
    expected, bound = gated_expected(x, w, activation)
    for workers in TEAMS:
        out = torch.full(expected.shape, torch.nan, dtype=x.dtype)
        call("gated_panels", [x, in_layout("gated_panels", w)], out, [ACTIVATIONS.index(activation)], workers)
        assert ((out.double() - expected).abs() <= bound).all()


@generated
@given(
    symbol=st.sampled_from(["linear_rows", "linear_panels", "gated_panels"]),
    inner=st.one_of(widths, st.sampled_from([500, 4097])),
    outer=st.integers(1, 100),
    dtype=dtypes,
    strided=st.booleans(),
    bias=st.booleans(),
    batches=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 40)), min_size=1, max_size=6),
    seed=seeds,
)
@example(symbol="linear_panels", inner=96, outer=70, dtype="bf16", strided=True, bias=True, batches=[(0, n) for n in range(1, 41)], seed=0)
@example(symbol="gated_panels", inner=96, outer=70, dtype="bf16", strided=True, bias=True, batches=[(0, n) for n in range(1, 41)], seed=0)
@example(symbol="linear_rows", inner=97, outer=70, dtype="f32", strided=True, bias=True, batches=[(0, n) for n in range(1, 41)], seed=0)
def test_a_row_has_the_same_bits_in_any_batch(
    symbol: str, inner: int, outer: int, dtype: str, strided: bool, bias: bool, batches: list[tuple[int, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, 40, inner, strided=strided)
    gated = symbol == "gated_panels"
    w = in_layout(symbol, normal(dtype, outer * (1 + gated), inner))
    rest = [normal(dtype, outer)] if bias and not gated else []

    def products(rows: Tensor, workers: int) -> Tensor:
        return call(symbol, [rows, w, *rest], torch.full((len(rows), outer), torch.nan, dtype=x.dtype), [0] * gated, workers)

    alone = torch.cat([products(x[row : row + 1], 1) for row in range(40)])
    assert not alone.isnan().any()
    for first, count in batches:
        rows = torch.arange(first, first + count) % 40
        for workers in TEAMS:
            assert torch.equal(products(x[rows], workers), alone[rows])
            assert torch.equal(products(x[first : first + count], workers), alone[first : first + count])


# ---- the screened head

KEEPS = st.sampled_from([1, 5, 64])


def screened(x: Tensor, w: Tensor, keep: Sequence[int], workers: int) -> Tensor:
    keep_S = torch.tensor(keep, dtype=torch.int32)
    return run("ts::screened_linear", [x, w, layout(SCREEN).pack(w), keep_S], (len(x), len(w)), workers=workers)


def whole_head(x: Tensor, w: Tensor) -> Tensor:
    return run("ts::linear", [x, w], (len(x), len(w)))


def same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def check_screened(x: Tensor, w: Tensor, keep: Sequence[int]) -> int:
    """How many logits were left out."""
    whole = whole_head(x, w)
    for workers in TEAMS:
        logits = screened(x, w, keep, workers)
        kept = same(logits, whole)
        assert torch.equal(logits[~kept], torch.full_like(logits[~kept], -torch.inf))
        for row, count in enumerate(keep):
            least = whole[row].topk(min(count or len(w), len(w))).values[-1]
            assert kept[row][whole[row] >= least].all(), f"row {row}: one of the {count} largest is left out"
    return int((~kept).sum())


heads_of = st.sampled_from([(1, 1), (5, 3), (31, 17), (32, 16), (33, 30), (70, 33), (161, 64), (1000, 65), (1000, 128)])


@generated
@given(shape=heads_of, keep=st.lists(KEEPS, min_size=1, max_size=9), dtype=dtypes, strided=st.booleans(), seed=seeds)
def test_screened_linear_has_what_is_among_the_largest(
    shape: tuple[int, int], keep: list[int], dtype: str, strided: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    check_screened(normal(dtype, len(keep), shape[1], strided=strided), normal(dtype, *shape), keep)


@generated
@given(
    shape=heads_of,
    keep=st.lists(KEEPS, min_size=4, max_size=4),
    dtype=dtypes,
    spread=st.sampled_from([0.0, 1e-6, 1e-2]),
    factors=st.lists(st.sampled_from([1e-3, 1.0, 1.0, 1e3]), min_size=1, max_size=7),
    outlier=st.sampled_from([1.0, 100.0, 1e4]),
    seed=seeds,
)
def test_screened_linear_of_rows_made_to_deceive(
    shape: tuple[int, int], keep: list[int], dtype: str, spread: float, factors: list[float], outlier: float, seed: int
) -> None:
    """Ties, near ties that 8 bits can not tell apart, rows of other sizes; x with an outlier, of zeros, and along one of the rows."""
    torch.manual_seed(seed)
    some = torch.randn(max(1, shape[0] // 3), shape[1])
    rows = some[torch.randint(len(some), (shape[0],))]
    rows = rows * torch.tensor(factors)[torch.randint(len(factors), (shape[0],))][:, None]
    w = (rows * (1 + spread * torch.randn(shape))).to(torch_dtype(dtype))
    w[0] = 0
    x = torch.randn(4, shape[1])
    x[0, 0] *= outlier
    x[1] = 0
    x[2] = w[-1].float()
    check_screened(x.to(w.dtype), w, keep)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_screened_linear_leaves_out_most_of_a_head(dtype: str) -> None:
    """Without which the other tests would show nothing."""
    torch.manual_seed(0)
    x, w = normal(dtype, 3, 256), normal(dtype, 5000, 256)
    assert check_screened(x, w, [1, 1, 5]) > 0.5 * 3 * 5000


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("keep", [[0], [0, 1, 5], [1, 0], [65], [1000]])
def test_screened_linear_of_who_keeps_all_is_linear(keep: list[int], dtype: str) -> None:
    torch.manual_seed(0)
    x, w = normal(dtype, len(keep), 100), normal(dtype, 200, 100)
    logits, whole = screened(x, w, keep, 2), whole_head(x, w)
    for row, count in enumerate(keep):
        if not 1 <= count <= 64:
            assert torch.equal(logits[row], whole[row])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_screened_linear_shows_what_is_not_finite_in_x(bad: float, dtype: str) -> None:
    torch.manual_seed(0)
    w = normal(dtype, 333, 50)
    w[7] = 0
    for column in (0, 17, 49):
        x = normal(dtype, 4, 50)
        x[1, column] = bad
        for workers in TEAMS:
            logits, whole = screened(x, w, [1, 1, 5, 64], workers), whole_head(x, w)
            assert torch.equal(logits[1].isnan(), whole[1].isnan())
            assert not logits[[0, 2, 3]].isnan().any()
            best = call("max_index", [logits], torch.full((4,), 99, dtype=torch.int32))
            assert best.tolist() == [-1 if row == 1 else int(whole[row].argmax()) for row in range(4)]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_screened_linear_shows_nan_in_a_row_of_the_weight(dtype: str) -> None:
    torch.manual_seed(0)
    x, clean = normal(dtype, 1, 50), normal(dtype, 333, 50)
    for row in (0, 7, 8, 15, 16, 24, 31, 40, 332):
        w = clean.clone()
        w[row, 3] = torch.nan
        assert screened(x, w, [1], 1)[0, row].isnan(), row


# ---- max_index


def first_of_largest(x: Tensor) -> list[int]:
    largest = x.float().amax(-1)
    first = (x.float() == largest[:, None]).int().argmax(-1)
    return [int(i) if value.isfinite() else -1 for i, value in zip(first, largest, strict=True)]


@generated
@given(
    rows=st.integers(1, 5),
    V=st.one_of(st.integers(1, 300), st.sampled_from([1000, 4096 + 3])),
    dtype=dtypes,
    strided=st.booleans(),
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 3.0, -torch.inf, torch.inf, torch.nan]), max_size=6),
    few=st.booleans(),
    seed=seeds,
)
def test_max_index_is_the_first_of_the_largest(
    rows: int, V: int, dtype: str, strided: bool, values: list[float], few: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, rows, V, strided=strided)
    if few:
        x.copy_(x.round())  # many equals
    for value in values:
        x[torch.randint(rows, ()), torch.randint(V, ())] = value
    for workers in TEAMS:
        assert call("max_index", [x], torch.full((rows,), 99, dtype=torch.int32), workers=workers).tolist() == first_of_largest(x)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("V", [1, 7, 8, 16, 63, 64, 65, 131])
def test_max_index_at_every_place(V: int, dtype: str) -> None:
    x = torch.full((V, V), -torch.inf, dtype=torch_dtype(dtype))
    out = torch.empty(V, dtype=torch.int32)
    assert call("max_index", [x], out).tolist() == [-1] * V
    diagonal = x.diagonal()
    diagonal.fill_(-3)
    assert call("max_index", [x], out).tolist() == list(range(V))
    for bad in (torch.nan, torch.inf):
        diagonal.fill_(bad)
        assert call("max_index", [x], out).tolist() == [-1] * V
        x[:, V // 2] = 1
        x.diagonal().fill_(bad)
        assert call("max_index", [x], out).tolist() == [-1] * V


# ---- by rows


@generated
@given(
    tokens=sizes, heads=st.integers(1, 4), width=widths, dtype=dtypes, offset=st.sampled_from([0.0, 1.0]), strided=st.booleans(), seed=seeds
)
def test_rms_norm(tokens: int, heads: int, width: int, dtype: str, offset: float, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, heads, width, strided=strided)
    agree("ts::rms_norm", (x, normal(dtype, width)), dtype, eps=1e-6, offset=offset)
    agree("ts::rms_norm", (x[:, 0], normal(dtype, width)), dtype, eps=0.05, offset=offset)


@generated
@given(
    tokens=sizes, heads=st.integers(1, 4), width=widths, dtype=dtypes, offset=st.sampled_from([0.0, 1.0]), strided=st.booleans(), seed=seeds
)
def test_rms_norm_of_whole_rows(tokens: int, heads: int, width: int, dtype: str, offset: float, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, w = normal(dtype, tokens, heads, width, strided=strided), normal(dtype, heads, width)
    exact, count = x.double().square().sum((1, 2)), heads * width
    for workers in TEAMS:
        squares = call("row_squares", [x], torch.full((tokens,), torch.nan), workers=workers)
        torch.testing.assert_close(squares.double(), exact, rtol=RELATIVE["f32"], atol=0)
        out = call("rms_scale", [x, squares, w], torch.full_like(x, torch.nan), [1e-5, offset, count], workers)
        expected = x.double() * torch.rsqrt(exact / count + 1e-5).view(-1, 1, 1) * (w.double() + offset)
        torch.testing.assert_close(out.double(), expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rms_norm_of_zeros_of_large_and_of_small(dtype: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 300) * torch.tensor([0.0, 1e15, 1e-15, 1.0])[:, None]
    agree("ts::rms_norm", (x.to(torch_dtype(dtype)), normal(dtype, 300)), dtype, eps=1e-6, offset=0.0)


@generated
@given(
    tokens=sizes,
    heads=st.lists(st.integers(1, 4), max_size=1),
    half=st.integers(1, 40),
    longest=st.sampled_from([2, 1000, 5000, 100_000]),
    kind=st.sampled_from(
        [("default", ()), ("linear", (4.0,)), ("llama3", (8.0, 1.0, 4.0, 256.0)), ("yarn", (40.0, 64.0, 32.0, 1.0, 1.3, 1.0))]
    ),
    staying=st.sampled_from([0, 0, 1, 2, 24]),
    interleaved=st.booleans(),
    dtype=dtypes,
    strided=st.booleans(),
    seed=seeds,
)
def test_rope(
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
    positions[0] = longest - 1
    frequencies = inverse_frequencies(2 * half, 10000.0, *kind)
    # Angles are f32 by the op's definition: a position past 2^16 leaves them few bits, which all must round alike.
    angles = (positions.float()[:, None] * frequencies).double().view(tokens, *[1] * len(heads), half)
    magnitude = kind[1][4] if kind[0] == "yarn" else 1.0
    cosine, sine = angles.cos() * magnitude, angles.sin() * magnitude
    pairs = x[..., : 2 * half].double().reshape(*x.shape[:-1], *((half, 2) if interleaved else (2, half)))
    first, second = pairs.unbind(-1 if interleaved else -2)
    turned = first * cosine - second * sine, second * cosine + first * sine
    expected = torch.cat((torch.stack(turned, -1 if interleaved else -2).flatten(-2), x[..., 2 * half :].double()), -1)
    kernel = TABLE["ts::rope", SIMD]
    numbers = kernel.numbers({"interleaved": interleaved, "kind": kind[0], "parameters": kind[1]})
    for workers in TEAMS:
        out = torch.full(x.shape, torch.nan, dtype=x.dtype)
        _cpu.call(TEAMS[workers], kernel.symbol, [operand(x), operand(positions)], operand(out), list(numbers), frequencies.tolist())
        torch.testing.assert_close(out.double(), expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype])


shapes = st.one_of(st.tuples(sizes, widths), st.tuples(sizes, st.integers(1, 4), widths))


@generated
@given(
    shape=shapes,
    call_of=st.sampled_from(
        [("silu", {}), ("gelu", {}), ("gelu_tanh", {}), ("scale", {"factor": 0.37}), ("softcap", {"cap": 30.0}), ("softcap", {"cap": 0.5})]
    ),
    spread=st.sampled_from([1e-3, 1.0, 8.0]),
    dtype=dtypes,
    strided=st.booleans(),
    seed=seeds,
)
def test_one_operand(
    shape: tuple[int, ...], call_of: tuple[str, dict[str, float]], spread: float, dtype: str, strided: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, *shape, strided=strided).mul_(spread)
    agree(f"ts::{call_of[0]}", (x,), dtype, **call_of[1])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "softcap"])
def test_functions_at_large_and_small_numbers_and_nan(name: str, dtype: str) -> None:
    attributes = {"cap": 30.0} if name == "softcap" else {}
    ends = [0.0, 1e-30, 1e-6, 0.4999, 0.5, 5.0, 9.5, 20.0, 88.0, 89.5, 104.0, 1000.0, 1e18, torch.inf]
    x = torch.tensor([[*ends, *(-end for end in ends[:-1]), torch.nan]]).to(torch_dtype(dtype))
    expected = op_named(f"ts::{name}").reference(x.double(), **attributes)
    result = run(f"ts::{name}", [x], x.shape, attributes)
    torch.testing.assert_close(result.double(), expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype], equal_nan=True)


@generated
@given(shape=shapes, name=st.sampled_from(["add", "mul"]), dtype=dtypes, strided=st.tuples(st.booleans(), st.booleans()), seed=seeds)
def test_two_operands(shape: tuple[int, ...], name: str, dtype: str, strided: tuple[bool, bool], seed: int) -> None:
    torch.manual_seed(seed)
    agree(f"ts::{name}", [normal(dtype, *shape, strided=one) for one in strided], dtype)
    equal(f"ts::{name}", [normal(dtype, *shape, strided=one) for one in strided])


# ---- what only moves rows


@generated
@given(tokens=sizes, vocabulary=sizes, width=widths, shard=st.integers(0, 3), dtype=dtypes, seed=seeds)
def test_embedding(tokens: int, vocabulary: int, width: int, shard: int, dtype: str, seed: int) -> None:
    torch.manual_seed(seed)
    table = normal(dtype, vocabulary, width)
    table[0] = torch.inf
    equal("ts::embedding", (torch.randint(0, 4 * vocabulary, (tokens,), dtype=torch.int32), table), shard=shard)


@generated
@given(
    tokens=sizes, shape=st.lists(st.integers(1, 20), min_size=1, max_size=2), rows=sizes, dtype=dtypes, strided=st.booleans(), seed=seeds
)
def test_take_rows(tokens: int, shape: list[int], rows: int, dtype: str, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = normal(dtype, tokens, *shape, strided=strided)
    equal("ts::take_rows", (x, torch.randint(0, tokens, (rows,), dtype=torch.int32)))


@generated
@given(
    tokens=st.integers(1, 12),
    page_size=st.integers(1, 5),
    heads=st.integers(1, 3),
    width=widths,
    dtype=dtypes,
    strided=st.tuples(st.booleans(), st.booleans()),
    latent=st.booleans(),
    seed=seeds,
)
def test_appends(
    tokens: int, page_size: int, heads: int, width: int, dtype: str, strided: tuple[bool, bool], latent: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    if latent:
        op, page = "ts::latent_append", [width + heads]
        rows = normal(dtype, tokens, width, strided=strided[0]), normal(dtype, tokens, heads, strided=strided[1])
    else:
        op, page = "ts::cache_append", [2, heads, width]
        rows = normal(dtype, tokens, heads, width, strided=strided[0]), normal(dtype, tokens, heads, width, strided=strided[1])
    before = normal(dtype, 12, page_size, *page)
    slots = torch.randperm(12 * page_size)[:tokens].int()
    expected = op_named(op).reference(before.clone(), *rows, slots)
    for workers in TEAMS:
        cache = before.clone()
        assert torch.equal(call(TABLE[op, SIMD].symbol, [cache, *rows, slots], cache, workers=workers), expected)
