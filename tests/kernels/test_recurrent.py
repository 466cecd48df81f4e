"""Recurrences with a state for each sequence: the references against transformers, the native kernels against the references, and a
sequence's bits in any chunks and company, on every instruction set.

K key heads with G value heads each; A elements of a key and E of a value; W taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d, softplus

import tskernels.library  # noqa: F401  (torch.ops.ts, whose functions take any number of operands)
from tskernels.dtypes import dtype_name, torch_dtype
from tskernels.recurrent import decay
from tskernels.simd import SIMD, TABLE

_cpu = pytest.importorskip("tskernels._cpu", reason="needs the native kernels, which are built for x86-64 alone", exc_type=ImportError)

ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(not _cpu.has_isa(isa), reason=f"needs {isa}")) for isa in ("avx512_bf16", "avx512", "avx2")
]
TEAMS = {workers: _cpu.Team(workers) for workers in (1, 2)}
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2}
"""Relative to numbers of about one: sums of up to a hundred products, or one rounding to bf16."""
SCALE, EPS = 0.3, 1e-6
PAGES = 5

Run = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, Sequence[tuple[int, int]], Sequence[int]], Tensor]
"""Operands with rows, others, states, spans and pages to a result."""


@dataclass(frozen=True)
class Op:
    """An op with a state: its operands that have rows, the others, and its state, of some sizes."""

    name: str
    make: Callable[[int, str], tuple[list[Tensor], list[Tensor], Tensor]]
    reference: Run
    numbers: tuple[float, ...]


def conv_operands(width: int, heads: int, taps: int) -> Callable[[int, str], tuple[list[Tensor], list[Tensor], Tensor]]:
    def make(rows: int, dtype: str) -> tuple[list[Tensor], list[Tensor], Tensor]:
        joint = torch.randn(rows, heads, width + 7).to(torch_dtype(dtype))  # a part of a joint product
        w = torch.randn(heads, width, 1, taps).to(torch_dtype(dtype))
        return [joint[..., 3 : 3 + width]], [w], torch.randn(PAGES, taps - 1, heads, width)

    return make


def delta_operands(K: int, G: int, A: int, E: int) -> Callable[[int, str], tuple[list[Tensor], list[Tensor], Tensor]]:
    def make(rows: int, dtype: str) -> tuple[list[Tensor], list[Tensor], Tensor]:
        q, k = (torch.randn(rows, K, A).to(torch_dtype(dtype)) for _ in range(2))
        v, beta = torch.randn(rows, K, G, E).to(torch_dtype(dtype)), torch.rand(rows, K, G).to(torch_dtype(dtype))
        return [q, k, v, torch.rand(rows, K, G), beta], [], torch.randn(PAGES, K, G, A, E)

    return make


def run_conv(
    rows: Sequence[Tensor], others: Sequence[Tensor], state: Tensor, spans: Sequence[tuple[int, int]], pages: Sequence[int]
) -> Tensor:
    made: Tensor = torch.ops.ts.short_conv(*rows, *others, state, integers(spans), integers(pages), 0)
    return made


def run_delta(
    rows: Sequence[Tensor], others: Sequence[Tensor], state: Tensor, spans: Sequence[tuple[int, int]], pages: Sequence[int]
) -> Tensor:
    made: Tensor = torch.ops.ts.gated_delta(*rows, state, integers(spans), integers(pages), 0, SCALE, EPS)
    return made


def integers(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


OPS = {
    "conv": Op("ts::short_conv", conv_operands(21, 2, 4), run_conv, (0.0,)),
    "conv_two_taps": Op("ts::short_conv", conv_operands(64, 1, 2), run_conv, (0.0,)),
    "delta": Op("ts::gated_delta", delta_operands(2, 2, 19, 37), run_delta, (0.0, SCALE, EPS)),
    "delta_wide": Op("ts::gated_delta", delta_operands(1, 1, 64, 64), run_delta, (0.0, SCALE, EPS)),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
every_dtype = pytest.mark.parametrize("dtype", ["f32", "bf16"])


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


every_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)


def native(op: Op, workers: int) -> Run:
    """The kernel of the table, called as a program does."""

    def operand(tensor: Tensor) -> tuple[str, int, int, int, str, Sequence[int], Sequence[int]]:
        return "fixed", tensor.data_ptr(), 0, 0, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.stride()

    def run(
        rows: Sequence[Tensor], others: Sequence[Tensor], state: Tensor, spans: Sequence[tuple[int, int]], pages: Sequence[int]
    ) -> Tensor:
        shape = rows[2].shape if len(rows) > 1 else rows[0].shape
        out = torch.full(shape, torch.nan, dtype=rows[0].dtype)
        operands = [*rows, *others, state, integers(spans), integers(pages)]
        _cpu.call(TEAMS[workers], TABLE[op.name, SIMD].symbol, [operand(x) for x in operands], operand(out), list(op.numbers), [])
        return out

    return run


def test_the_delta_rule_is_that_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    rule: Any = modeling.torch_recurrent_gated_delta_rule
    torch.manual_seed(0)
    [q, k, v, kept, beta], _, state = delta_operands(3, 2, 8, 12)(11, "f32")
    before = state[2].clone()
    found = run_delta([q, k, v, kept, beta], [], state, [(0, 11)], [2])
    values, log_decay, gain = (x.flatten(1, 2)[None] for x in (v, kept.log(), beta))
    begins: Any = {"initial_state": before.flatten(0, 1)[None], "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    expected, last = rule(q[None], k[None], values, g=log_decay, beta=gain, **begins)
    torch.testing.assert_close(found.flatten(1, 2), expected[0] * (SCALE * 8**0.5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state[2].flatten(0, 1), last[0], rtol=1e-5, atol=1e-5)


def test_the_convolution_is_that_of_torch() -> None:
    torch.manual_seed(0)
    [x], [w], state = conv_operands(9, 2, 4)(13, "f32")
    found = run_conv([x], [w], state, [(0, 13)], [~1])
    expected = conv1d(x.flatten(1).T[None], w.flatten(0, 1), padding=3, groups=18)[0, :, :13].T
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(state[1], x[-3:])


def test_the_decay_is_what_a_discrete_step_leaves() -> None:
    torch.manual_seed(0)
    x, rate, bias = torch.randn(4, 2, 3) * 9, torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(decay(x, rate, bias), torch.exp(-rate.exp() * softplus(x + bias)))


@every_isa
@every_dtype
def test_the_native_decay_agrees(isa: str, dtype: str) -> None:
    torch.manual_seed(0)
    x, rate, bias = (torch.randn(5, 3, 11) * 9).to(torch_dtype(dtype))[..., 2:9], torch.randn(3, 7), torch.randn(3, 7)
    out = torch.empty(5, 3, 7)
    operands = [("fixed", t.data_ptr(), 0, 0, dtype_name(t.dtype), tuple(t.shape), t.stride()) for t in (x, rate, bias, out)]
    _cpu.call(TEAMS[2], "decay", operands[:3], operands[3], [], [])
    torch.testing.assert_close(out, decay(x.double(), rate.double(), bias.double()).float(), rtol=1e-5, atol=1e-6)


@every_isa
@every_op
@every_dtype
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    begins=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_native_kernels_agree_with_the_references(
    isa: str, op: Op, dtype: str, lengths: list[int], padding: int, begins: list[bool], seed: int
) -> None:
    torch.manual_seed(seed)
    total = sum(lengths)
    rows, others, state = op.make(total + padding, dtype)
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    spans = [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    pages = [~s if begins[s] else s for s in range(len(lengths))]
    expected_state = state.double()
    expected = op.reference([x.double() for x in rows], [x.double() for x in others], expected_state, spans, pages)
    for workers in TEAMS:
        found_state = state.clone()
        found = native(op, workers)(rows, others, found_state, spans, pages)
        assert not found[total:].any()
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        torch.testing.assert_close(found_state.double(), expected_state, rtol=2e-5, atol=2e-5)


def in_chunks(run: Run, rows: Sequence[Tensor], others: Sequence[Tensor], state: Tensor, cuts: Sequence[int], neighbours: int) -> Tensor:
    """A sequence of all the rows in several steps, each beside another sequence that has `neighbours` of the rows."""
    made = []
    for first, last in zip([0, *cuts], [*cuts, len(rows[0])], strict=True):
        step = [torch.cat((x[:neighbours], x[first:last])) for x in rows]
        spans = [(0, neighbours), (neighbours, neighbours + last - first)]
        made.append(run(step, others, state, spans, [~0, 3 if first else ~3])[neighbours:])
    return torch.cat(made)


def check_bits(run: Run, op: Op, dtype: str) -> None:
    torch.manual_seed(1)
    rows, others, state = op.make(45, dtype)
    whole_state = state.clone()
    whole = run(rows, others, whole_state, [(0, 45)], [~3])
    for cuts, neighbours in (([7, 8, 31], 0), ([16, 32], 5), (list(range(1, 45)), 1)):
        chunked_state = state.clone()
        assert torch.equal(in_chunks(run, rows, others, chunked_state, cuts, neighbours), whole)
        assert torch.equal(chunked_state[3], whole_state[3])


@every_isa
@every_op
@every_dtype
@pytest.mark.parametrize("workers", TEAMS)
def test_a_sequence_has_the_same_bits_in_any_chunks(isa: str, op: Op, dtype: str, workers: int) -> None:
    check_bits(native(op, workers), op, dtype)


@every_op
@every_dtype
def test_a_sequence_has_the_same_bits_in_any_chunks_of_the_reference(op: Op, dtype: str) -> None:
    check_bits(op.reference, op, dtype)


@every_op
def test_ranks_that_share_out_the_rows_take_the_sequences_of_their_block(op: Op) -> None:
    torch.manual_seed(2)
    rows, others, state = op.make(8, "f32")
    spans, pages = [(0, 3), (4, 6)], [0, ~1]
    whole = op.reference(rows, others, state.clone(), spans, pages)
    last = (SCALE, EPS) if op.name == "ts::gated_delta" else ()
    function = getattr(torch.ops.ts, op.name.removeprefix("ts::"))
    for shard in (0, 1):
        own = [x[4 * shard : 4 * shard + 4].contiguous() for x in rows]
        found = function(*own, *others, state.clone(), integers(spans), integers(pages), shard, *last)
        assert torch.equal(found, whole[4 * shard : 4 * shard + 4])
        given = TABLE[op.name, SIMD]
        out = torch.full(found.shape, torch.nan)
        operands = [*own, *others, state.clone(), integers(spans), integers(pages), out]
        places = [("fixed", t.data_ptr(), 0, 0, dtype_name(t.dtype), tuple(t.shape), t.stride()) for t in operands]
        _cpu.call(TEAMS[2], given.symbol, places[:-1], places[-1], [float(shard), *last], [])
        torch.testing.assert_close(out, found, rtol=2e-5, atol=2e-5)
