"""Native mixtures of experts and batched products: against their references in float64, and a token's bits in any company, on every
instruction set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.kernels.quantized_sources import source
from tests.kernels.test_kernels import ABSOLUTE, RELATIVE
from tests.kernels.test_simd_kernels import ISAS, TEAMS, _cpu, call, dtypes, generated, normal, run, seeds, sizes, wide, widths
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tskernels.layouts import PANELS, STACKED, layout
from tskernels.mixture import gate_with, route
from tskernels.quantized import FORMATS
from tskernels.registry import Call, Operand, explain, op_named
from tskernels.simd import SIMD, SIMD_PANELS, TABLE, TARGET

F32, BF16 = 2.0**-24, 2.0**-8
"""What one rounding is off by, relatively."""


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


# ---- route


def route_in_cpp(operands: Sequence[Tensor], choice: Mapping[str, object], workers: int = 1) -> Tensor:
    return run("ts::route", operands, operands[0].shape, choice, workers)


def is_told_apart(values: Tensor) -> bool:
    """Whether numbers of a row that are not equal are further from each other than f32 could mix them up."""
    gaps = values.sort(-1).values.diff(dim=-1)
    return bool(((gaps == 0) | (gaps > 1e-6)).all())


@generated
@given(
    tokens=sizes,
    groups=st.integers(1, 5),
    size=st.integers(2, 40),
    top_k=st.integers(1, 9),
    top_groups=st.integers(1, 5),
    score=st.sampled_from(["softmax", "sigmoid"]),
    normalize=st.booleans(),
    biased=st.sampled_from([None, "f32", "bf16"]),
    dtype=dtypes,
    strided=st.booleans(),
    steps=st.sampled_from([2, 8, 16]),
    seed=seeds,
)
def test_route(
    tokens: int,
    groups: int,
    size: int,
    top_k: int,
    top_groups: int,
    score: str,
    normalize: bool,
    biased: str | None,
    dtype: str,
    strided: bool,
    steps: int,
    seed: int,
) -> None:
    """Logits in steps, so that many are equal: of those the first wins."""
    torch.manual_seed(seed)
    number = groups * size
    logits = normal(dtype, tokens, number, strided=strided)
    logits.copy_((logits.float() * steps).round() / steps)
    bias = [] if biased is None else [torch.randint(0, 3, (number,)).to(torch_dtype(biased)) / 4]
    scores = logits.double().sigmoid() if score == "sigmoid" else logits.double().softmax(-1)
    ranked = scores + bias[0].double() if bias else scores
    best = ranked.view(tokens, groups, size).sort(dim=-1, descending=True).values[..., :2].sum(-1)
    assume(is_told_apart(ranked) and is_told_apart(best))
    choice: dict[str, Any] = {"top_k": min(top_k, number), "score": score, "normalize": normalize, "scale": 2.5}
    choice |= {"groups": groups, "top_groups": min(top_groups, groups), "group_best": 2}
    expected = route(*wide([logits, *bias]), **choice)
    for workers in TEAMS:
        found = route_in_cpp([logits, *bias], choice, workers)
        assert torch.equal(found != 0, expected != 0)
        torch.testing.assert_close(found.double(), expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype])


PLAIN: Mapping[str, object] = {"normalize": True, "scale": 1.0, "groups": 1, "top_groups": 1, "group_best": 1}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_route_of_what_is_not_finite_is_the_references(score: str, dtype: str) -> None:
    logits = torch.randn(6, 21).to(torch_dtype(dtype))
    logits[0, 4] = torch.nan
    logits[1, [3, 18]] = torch.inf
    logits[2, 5] = -torch.inf
    logits[3] = -torch.inf
    logits[4, 20] = torch.nan
    choice: dict[str, Any] = dict(PLAIN, top_k=3, score=score)
    expected = route(logits.double(), **choice)
    found = route_in_cpp([logits], choice).double()
    torch.testing.assert_close(found, expected, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype], equal_nan=True)


@pytest.mark.parametrize("top_k", [1, 3, 8])
@pytest.mark.parametrize("groups", [1, 4])
def test_of_equal_experts_the_first_are_chosen(groups: int, top_k: int) -> None:
    choice = dict(PLAIN, top_k=top_k, score="sigmoid", groups=groups, top_groups=2 if groups > 1 else 1)
    found = route_in_cpp([torch.zeros(2, 32)], choice)
    assert [row.nonzero().flatten().tolist() for row in found] == [list(range(top_k))] * 2


# ---- experts

Experts = tuple[Tensor, ...]
"""Gate, up and down, then a bias of each or of none."""
PLAIN_GATING: Mapping[str, float] = {"alpha": 1.0, "limit": 0.0, "offset": 0.0}
CLAMPED: Mapping[str, float] = {"alpha": 1.702, "limit": 1.5, "offset": 1.0}
gatings = st.sampled_from([PLAIN_GATING, CLAMPED, {"alpha": 1.0, "limit": 0.7, "offset": 0.0}])


def make_experts(dtype: str, number: int, inner: int, width: int, *, biased: bool = False) -> Experts:
    gate, up = (torch.randn(number, inner, width) / width**0.5 for _ in range(2))
    down = torch.randn(number, width, inner) / inner**0.5
    biases = [torch.randn(number, inner), torch.randn(number, inner), torch.randn(number, width)] if biased else []
    return tuple(w.to(torch_dtype(dtype)) for w in (gate, up, down, *biases))


def uneven_weights(dtype: str, tokens: int, number: int) -> Tensor:
    """Each expert has another share of the tokens, from none to all."""
    shares = torch.rand(number).mul(1.6).sub(0.3).clamp(0, 1)
    return (torch.rand(tokens, number) * (torch.rand(tokens, number) < shares)).to(torch_dtype(dtype))


def experts_in_cpp(
    x: Tensor,
    weights: Tensor,
    stored: Sequence[Tensor],
    workers: int = 1,
    gating: Mapping[str, float] = PLAIN_GATING,
    name: str = SIMD_PANELS,
) -> Tensor:
    out = torch.full_like(x, torch.nan, memory_format=torch.contiguous_format)
    kernel = TABLE["ts::experts", name]
    return call(kernel.symbol, [x, weights, *stored], out, kernel.numbers(gating), workers=workers)


def in_panels(weights: Experts) -> list[Tensor]:
    return [*(layout(PANELS).pack(w) for w in weights[:3]), *weights[3:]]


def error_bound(rounding: float, x: Tensor, weights: Tensor, stored: Experts, gating: Mapping[str, float]) -> Tensor:
    """What rounding can come to: of every sum in f32, in any order; of what `down` multiplies, which may be rounded to the operands' type;
    and of the result. All in f64."""
    gate, up, down, *biases = stored
    D, F, result = gate.shape[2], gate.shape[1], torch.zeros_like(x)
    for n in range(len(gate)):
        of_bias = [b[n] for b in biases] or [torch.zeros(1)] * 3
        g, u = (x @ w[n].t() + b for w, b in ((gate, of_bias[0]), (up, of_bias[1])))
        of_g, of_u = ((D + 3) * F32 * (x.abs() @ w[n].abs().t() + b.abs()) for w, b in ((gate, of_bias[0]), (up, of_bias[1])))
        inner = gate_with(g, u, **gating)
        size = u.abs() + of_u + gating["offset"]
        of_inner = 1.2 * of_g * size + g.abs() * of_u + (16 * F32 + rounding) * (inner.abs() + g.abs() * gating["offset"])
        of_sum = (F + 3 + len(gate)) * F32 * (inner.abs() + of_inner) + of_inner
        result += weights[:, n, None] * (of_sum @ down[n].abs().t() + (len(gate) + 2) * F32 * of_bias[2].abs())
    expected: Tensor = op_named("ts::experts").reference(x, weights, *stored, **gating)
    return result + rounding * (expected.abs() + result)


@generated
@given(
    tokens=st.one_of(sizes, st.sampled_from([61, 100, 230])),
    number=st.integers(1, 9),
    inner=widths,
    width=widths,
    dtype=dtypes,
    strided=st.booleans(),
    biased=st.booleans(),
    gating=gatings,
    seed=seeds,
)
def test_experts(
    tokens: int, number: int, inner: int, width: int, dtype: str, strided: bool, biased: bool, gating: Mapping[str, float], seed: int
) -> None:
    torch.manual_seed(seed)
    x, weights = normal(dtype, tokens, width, strided=strided), uneven_weights(dtype, tokens, number)
    made = make_experts(dtype, number, inner, width, biased=biased)
    wide_x, wide_weights, *exact = wide([x, weights, *made])
    expected = op_named("ts::experts").reference(wide_x, wide_weights, *exact, **gating)
    bound = error_bound(BF16 if dtype == "bf16" else 0.0, wide_x, wide_weights, tuple(exact), gating)
    for workers in TEAMS:
        found = experts_in_cpp(x, weights, in_panels(made), workers, gating)
        assert ((found.double() - expected).abs() <= bound).all()
        assert not found[(weights == 0).all(-1)].any()


@generated
@given(
    number=st.integers(1, 20),
    inner=st.one_of(widths, st.sampled_from([500])),
    width=widths,
    dtype=dtypes,
    batches=st.lists(st.tuples(st.integers(0, 129), st.integers(1, 130)), min_size=1, max_size=5),
    biased=st.booleans(),
    seed=seeds,
)
@example(number=4, inner=70, width=96, dtype="bf16", batches=[(0, n) for n in range(1, 131)], biased=True, seed=0)
@example(number=4, inner=70, width=97, dtype="f32", batches=[(0, n) for n in range(1, 131)], biased=False, seed=0)
def test_a_token_has_the_same_bits_with_any_others_at_its_experts(
    number: int, inner: int, width: int, dtype: str, batches: list[tuple[int, int]], biased: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    gating = CLAMPED if biased else PLAIN_GATING
    x, weights = normal(dtype, 130, width), uneven_weights(dtype, 130, number)
    stored = in_panels(make_experts(dtype, number, inner, width, biased=biased))
    alone = torch.cat([experts_in_cpp(x[t : t + 1], weights[t : t + 1], stored, 1, gating) for t in range(130)])
    assert not alone.isnan().any()
    for first, count in batches:
        rows = torch.arange(first, first + count) % 130
        for workers in TEAMS:
            assert torch.equal(experts_in_cpp(x[rows], weights[rows], stored, workers, gating), alone[rows])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("tokens", "number"), [(4500, 3), (2600, 16)])
def test_a_step_of_more_tokens_than_are_worked_on_at_once(tokens: int, number: int, dtype: str) -> None:
    """More tokens than 2048, and more pairs than 16384."""
    torch.manual_seed(0)
    x, weights = normal(dtype, tokens, 12), torch.rand(tokens, number).to(torch_dtype(dtype))
    stored = in_panels(make_experts(dtype, number, 20, 12))
    parts = torch.cat([experts_in_cpp(x[t : t + 100], weights[t : t + 100], stored) for t in range(0, tokens, 100)])
    for workers in TEAMS:
        assert torch.equal(experts_in_cpp(x, weights, stored, workers), parts)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("form", STACKED)
@pytest.mark.parametrize(("inner", "width"), [(64, 96), (160, 224), (32, 4128)])
def test_quantized_experts_have_the_bits_of_their_values(form: str, dtype: str, inner: int, width: int) -> None:
    """Of experts that have none, a few and many of the tokens; wider than what a whole panel is unpacked of, too."""
    torch.manual_seed(0)
    number, tokens = 6, 200
    x, weights = normal(dtype, tokens, width), uneven_weights(dtype, tokens, number)
    biases = make_experts(dtype, number, inner, width, biased=True)[3:]
    shapes = [(inner, width), (inner, width), (width, inner)]
    packed = [layout(form).pack(torch.stack([source(FORMATS[form], *shape, seed=n) for n in range(number)])) for shape in shapes]
    unpack = layout(form).unpack
    assert unpack is not None
    values = tuple(unpack(p, (number, *shape)).to(torch_dtype(dtype)) for p, shape in zip(packed, shapes, strict=True))
    for rows in (1, 2, 5, 40, tokens):
        for workers in TEAMS:
            wanted = experts_in_cpp(x[:rows], weights[:rows], [*in_panels(values), *biases], workers, CLAMPED)
            found = experts_in_cpp(x[:rows], weights[:rows], [*packed, *biases], workers, CLAMPED, f"simd_{form}")
            assert found.isfinite().all()
            assert torch.equal(found, wanted)


# ---- einsum

EQUATIONS = ["the,hec->thc", "thc,hec->the", "hte,hec->htc", "the,hce->htc", "he,hec->hc", "te,ec->tc", "te,ce->tc", "the,ehc->thc"]


def einsum_in_cpp(x: Tensor, y: Tensor, equation: str, shape: Sequence[int], workers: int = 1) -> Tensor:
    return run("ts::einsum", [x, y], shape, {"equation": equation}, workers)


@generated
@given(
    equation=st.sampled_from(EQUATIONS),
    tokens=st.one_of(sizes, st.sampled_from([61, 500])),
    heads=st.integers(1, 5),
    inner=widths,
    outer=widths,
    dtype=dtypes,
    strided=st.tuples(st.booleans(), st.booleans()),
    seed=seeds,
)
def test_einsum(equation: str, tokens: int, heads: int, inner: int, outer: int, dtype: str, strided: tuple[bool, bool], seed: int) -> None:
    torch.manual_seed(seed)
    letters = {"t": tokens, "h": heads, "e": inner, "c": outer}
    operands = equation.split("->")[0].split(",")
    x, y = (normal(dtype, *(letters[c] for c in operand), strided=s) for operand, s in zip(operands, strided, strict=True))
    summed = inner if "e" not in equation.split("->")[1] else outer
    y /= summed**0.5
    reference = op_named("ts::einsum").reference
    expected = reference(*wide([x, y]), equation)
    bound = (summed + 2) * F32 * reference(*(t.abs() for t in wide([x, y])), equation)
    bound = bound + (BF16 if dtype == "bf16" else 0.0) * (expected.abs() + bound)
    for workers in TEAMS:
        found = einsum_in_cpp(x, y, equation, expected.shape, workers)
        assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("equation", ["the,hec->thc", "the,hce->thc"])
@pytest.mark.parametrize(("inner", "outer"), [(192, 70), (33, 512)])
def test_a_row_of_einsum_has_the_same_bits_in_any_batch(inner: int, outer: int, equation: str, dtype: str) -> None:
    torch.manual_seed(0)
    x = normal(dtype, 500, 3, inner, strided=True)
    y = normal(dtype, 3, *((inner, outer) if equation.endswith("hec->thc") else (outer, inner)))
    whole = einsum_in_cpp(x, y, equation, (500, 3, outer), 2)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 25, 239, 240, 241, 499):
        for workers in TEAMS:
            assert torch.equal(einsum_in_cpp(x[:rows], y, equation, (rows, 3, outer), workers), whole[:rows])
            assert torch.equal(einsum_in_cpp(x[-rows:], y, equation, (rows, 3, outer), workers), whole[-rows:])


@pytest.mark.parametrize("equation", ["tab,abc->tc", "the,hecd->thcd", "eth,hec->thc", "the,hec->hct", "the,ech->thc", "tuhe,hec->tuhc"])
def test_what_is_no_batched_product_is_left_to_others(equation: str) -> None:
    operands = tuple(Operand("f32", tuple(8 for _ in letters)) for letters in equation.split("->")[0].split(","))
    [found] = [c for c in explain(Call("ts::einsum", operands, {"equation": equation}), TARGET) if c.kernel.name == SIMD]
    assert found.reason is not None
    assert found.reason.startswith("needs one float type, and an equation")
