"""Attention: the reference against torch's own, kernels against the reference, and a sequence's bits in any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tskernels.attention import attention, attention_torch, sink_attention, sink_attention_torch
from tskernels.dtypes import torch_dtype
from tskernels.registry import Call, Operand, explain
from tskernels.target import CPU

# f32: sums of at most 64 keys in other orders. bf16: torch keeps softmax weights in bf16 (2^-8 each, weights sum to one)
# and rounds the result (2^-8).
TOLERANCE = {"f32": 2.0**-18, "f64": 2.0**-45, "bf16": 2.0**-6}


@dataclass
class Step:
    """The operands of one attention call, its pages scattered over a cache that holds NaN wherever nothing was written."""

    q: Tensor
    cache: Tensor
    spans: Tensor
    lengths: Tensor
    tables: Tensor
    sinks: Tensor

    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
        return self.q, self.cache, self.spans, self.lengths, self.tables, 0

    def with_sinks(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
        return self.q, self.cache, self.sinks, self.spans, self.lengths, self.tables, 0


def make_step(
    sequences: list[tuple[int, int]], *, page_size: int = 4, K: int = 2, G: int = 3, E: int = 8, dtype: str = "f32", seed: int = 0
) -> Step:
    """`sequences` are (tokens before, new tokens)."""
    torch.manual_seed(seed)
    lengths = [before + new for before, new in sequences]
    counts = [-(-length // page_size) for length in lengths]
    free = torch.randperm(sum(counts) + 2).tolist()
    cache = torch.full((len(free), page_size, 2, K, E), torch.nan)
    tables = torch.zeros(len(sequences), max(counts) + 1, dtype=torch.int32)
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        for page in range(count):
            tables[row, page] = free.pop()
            filled = min(page_size, length - page * page_size)
            cache[tables[row, page], :filled] = torch.randn(filled, 2, K, E)
    starts = torch.tensor([0, *(new for _, new in sequences)]).cumsum(0).int()
    q = torch.randn(int(starts[-1]), K, G, E)
    element = torch_dtype(dtype)
    sinks = 2 * torch.randn(K, G)
    spans = torch.stack((starts[:-1], starts[1:]), 1)
    return Step(q.to(element), cache.to(element), spans, torch.tensor(lengths, dtype=torch.int32), tables, sinks.to(element))


def only(step: Step, sequence: int) -> Step:
    """The same step with one sequence alone, its table no wider than it must be."""
    first, last = step.spans[sequence].tolist()
    pages = -(-int(step.lengths[sequence]) // step.cache.shape[1])
    spans = torch.tensor([[0, last - first]], dtype=torch.int32)
    one = slice(sequence, sequence + 1)
    return Step(step.q[first:last], step.cache, spans, step.lengths[one], step.tables[one, :pages], step.sinks)


def run(step: Step, window: int = 0, softcap: float = 0.0, scale: float = 0.3, *, sinks: bool = False) -> Tensor:
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype)
    if sinks:
        sink_attention_torch(*step.with_sinks(), scale=scale, window=window, softcap=softcap, out=out)
    else:
        attention_torch(*step.operands(), scale=scale, window=window, softcap=softcap, out=out)
    return out


def reference(step: Step, window: int = 0) -> Tensor:
    return attention(*step.operands(), scale=0.3, window=window, softcap=0.0)


sequences = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 9)).filter(lambda pair: sum(pair) > 0), min_size=1, max_size=6)
decodes = st.lists(st.tuples(st.integers(0, 40), st.just(1)), min_size=1, max_size=8)
generated = settings(deadline=None, max_examples=60)


def test_reference_is_causal_attention_over_gathered_pages() -> None:
    step = make_step([(0, 7), (5, 1), (6, 3)])
    result = attention(*step.operands(), scale=0.3, window=0, softcap=0.0)
    for sequence in range(3):
        one = only(step, sequence)
        length, new = int(one.lengths[0]), one.q.shape[0]
        rows = one.cache[one.tables[0].long()].flatten(0, 1)[:length]
        keys, values = (rows[:, half].repeat_interleave(3, dim=1).transpose(0, 1) for half in (0, 1))
        mask = torch.ones(length, length).tril()[-new:].bool()
        expected = scaled_dot_product_attention(one.q.flatten(1, 2).transpose(0, 1), keys, values, attn_mask=mask, scale=0.3)
        bounds = slice(*step.spans[sequence].tolist())
        torch.testing.assert_close(result[bounds].flatten(1, 2), expected.transpose(0, 1), rtol=0, atol=TOLERANCE["f32"])


def test_reference_window_and_softcap_by_the_formula() -> None:
    step = make_step([(6, 2)], K=1, G=1, dtype="f64")
    result = attention(*step.operands(), scale=0.3, window=3, softcap=1.5)
    rows = step.cache[step.tables[0, :2].long()].flatten(0, 1)[:8, :, 0]
    for query, position in enumerate((6, 7)):
        seen = [key for key in range(8) if key <= position and position - key < 3]
        assert len(seen) == 3
        scores = torch.stack([step.q[query, 0, 0] @ rows[key, 0] * 0.3 for key in seen])
        weights = torch.softmax(1.5 * torch.tanh(scores / 1.5), 0)
        expected = weights @ rows[seen, 1]
        torch.testing.assert_close(result[query, 0, 0], expected, rtol=0, atol=1e-12)


def test_a_sink_takes_a_part_of_the_softmax_and_gives_nothing() -> None:
    step = make_step([(6, 2)], K=1, G=2, dtype="f64")
    step.sinks = torch.tensor([[0.7, -30.0]], dtype=torch.float64)
    result = sink_attention(*step.with_sinks(), scale=0.3, window=3, softcap=1.5)
    plain = attention(*step.operands(), scale=0.3, window=3, softcap=1.5)
    rows = step.cache[step.tables[0, :2].long()].flatten(0, 1)[:8, :, 0]
    for query, position in enumerate((6, 7)):
        keys = slice(position - 2, position + 1)
        scores = 1.5 * torch.tanh(rows[keys, 0] @ step.q[query, 0, 0] * 0.3 / 1.5)
        weights = scores.exp() / (scores.exp().sum() + step.sinks[0, 0].exp())
        torch.testing.assert_close(result[query, 0, 0], weights @ rows[keys, 1], rtol=0, atol=1e-12)
    torch.testing.assert_close(result[:, 0, 1], plain[:, 0, 1], rtol=0, atol=1e-9)


@generated
@given(
    sequences=sequences,
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([4, 8, 20, 64])),
    dtype=st.sampled_from(["f32", "bf16", "f64"]),
    window=st.sampled_from([0, 1, 3, 8, 100]),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernel_agrees_with_reference(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: tuple[int, int, int],
    dtype: str,
    window: int,
    softcap: float,
    sinks: bool,
    seed: int,
) -> None:
    K, G, E = heads
    step = make_step(sequences, page_size=page_size, K=K, G=G, E=E, dtype=dtype, seed=seed)
    given = {"scale": E**-0.5, "window": window, "softcap": softcap}
    expected = sink_attention(*step.with_sinks(), **given) if sinks else attention(*step.operands(), **given)
    result = run(step, window, softcap, scale=E**-0.5, sinks=sinks)
    torch.testing.assert_close(result, expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


@generated
@given(
    sequences=st.one_of(sequences, decodes),
    dtype=st.sampled_from(["f32", "bf16"]),
    window=st.sampled_from([0, 5]),
    softcap=st.sampled_from([0.0, 2.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_sequence_has_the_same_bits_in_any_company(
    sequences: list[tuple[int, int]], dtype: str, window: int, softcap: float, sinks: bool, seed: int
) -> None:
    step = make_step(sequences, E=64, dtype=dtype, seed=seed)
    together = run(step, window, softcap, sinks=sinks)
    for sequence in range(len(sequences)):
        alone = run(only(step, sequence), window, softcap, sinks=sinks)
        assert torch.equal(together[slice(*step.spans[sequence].tolist())], alone)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_long_sequence_has_the_same_bits_in_any_company(dtype: str) -> None:
    # More keys than torch's block of 512, and lengths that share their number of pages.
    step = make_step([(1200, 1), (1201, 1), (1202, 1), (700, 1), (3, 1), (0, 70), (600, 70)], page_size=16, E=64, dtype=dtype)
    together = run(step)
    for sequence in range(7):
        assert torch.equal(together[slice(*step.spans[sequence].tolist())], run(only(step, sequence)))


def lose_old_pages(step: Step) -> None:
    """Of sequences of 20 + 1 and 21 + 2 tokens in pages of 4, what no window of 6 reaches."""
    for row, oldest_page in ((0, 15 // 4), (1, 16 // 4)):
        step.cache[step.tables[row, :oldest_page].long()] = torch.nan
        step.tables[row, :oldest_page] = 10**6  # a page that does not exist


@pytest.mark.parametrize("subject", [run, reference], ids=["kernel", "reference"])
def test_window_reads_only_its_pages(subject: Callable[[Step, int], Tensor]) -> None:
    step = make_step([(20, 1), (21, 2)], page_size=4)
    expected = subject(step, 6)
    lose_old_pages(step)
    assert torch.equal(subject(step, 6), expected)
    assert not expected.isnan().any()


def test_query_may_be_a_view_of_a_fused_projection() -> None:
    step = make_step([(3, 1), (2, 1), (0, 4)])
    expected = run(step)
    wide = torch.randn(step.q.shape[0], step.q[0].numel() + 24)
    view = wide[:, 8 : 8 + step.q[0].numel()]
    view.copy_(step.q.flatten(1))
    step.q = view.view(step.q.shape)
    assert torch.equal(run(step), expected)


def test_mixed_element_types_go_to_the_reference() -> None:
    shapes: list[tuple[int | None, ...]] = [(None, 2, 3, 8), (None, 4, 2, 2, 8), (None,), (None,), (None, None)]
    types = ["f32", "bf16", "i32", "i32", "i32"]
    call = Call("ts::attention", tuple(map(Operand, types, shapes)), {"scale": 1.0, "window": 0, "softcap": 0.0})
    winner, *losers = explain(call, CPU)
    reasons = {candidate.kernel.name: candidate.reason for candidate in losers}
    assert (winner.kernel.name, reasons["torch"]) == ("reference", "needs floating operands of one element type")
