"""Native attention: both ops against their references in float64, and a sequence's bits in any company, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.int8_pages import pages_of
from tests.kernels.test_attention import Step, decodes, make_step, only, sequences
from torch import Tensor

from tskernels.attention import attention, oldest_key, sink_attention
from tskernels.fp8_cache import narrow
from tskernels.int8_cache import dequantize
from tskernels.latent_attention import latent_attention

_cpu = pytest.importorskip("tskernels._cpu", reason="needs the native kernels, which are built for x86-64 alone", exc_type=ImportError)

# f32: sums of up to a few hundred products in other orders. bf16: the result is rounded (2^-9), with products of bf16 pairs the weights
# too (2^-9 each, and they sum to one).
TOLERANCE = {"f32": 2.0**-17, "bf16": 2.0**-7}
DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int32: "i32", torch.uint8: "u8", torch.float8_e4m3fn: "f8e4m3"}
ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(not _cpu.has_isa(isa), reason=f"needs {isa}")) for isa in ("avx512_bf16", "avx512", "avx2")
]
TEAMS = {workers: _cpu.Team(workers) for workers in (1, 2)}
LATENT_ROTATED = 4


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


@dataclass(frozen=True)
class Attributes:
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.3
    latent: bool = False
    cache: Literal["rows", "int8", "fp8"] = "rows"
    """How the cache is stored."""
    sinks: bool = False


PLAIN = Attributes()


def operand(tensor: Tensor) -> tuple[str, int, int, int, str, Sequence[int], Sequence[int]]:
    return "fixed", tensor.data_ptr(), 0, 0, DTYPES[tensor.dtype], tuple(tensor.shape), tensor.stride()


def stored(cache: Tensor, attributes: Attributes) -> Tensor:
    if cache.dtype == torch.float64:
        return cache
    match attributes.cache:
        case "int8":
            return pages_of(cache)
        case "fp8":
            return narrow(cache)
    return cache


def operands_of(step: Step, attributes: Attributes) -> tuple[Tensor, ...]:
    """For latent attention the queries of the one K/V head become latent and rotated parts; the cache's rows are the keys."""
    if not attributes.latent:
        return step.q, stored(step.cache, attributes), *([step.sinks] if attributes.sinks else []), step.spans, step.lengths, step.tables
    q, rows = step.q[:, 0], step.cache[:, :, 0, 0].contiguous()
    return q[..., :-LATENT_ROTATED], q[..., -LATENT_ROTATED:], stored(rows, attributes), step.spans, step.lengths, step.tables


def run(step: Step, attributes: Attributes = PLAIN, workers: int = 1, shard: int = 0) -> Tensor:
    operands = operands_of(step, attributes)
    out = torch.full(operands[0].shape, torch.nan, dtype=step.q.dtype)
    numbers: list[float] = [shard, attributes.scale, attributes.window]
    if not attributes.latent:
        numbers.append(attributes.softcap)
    name = "latent_attention" if attributes.latent else "attention_int8" if attributes.cache == "int8" else "attention"
    if attributes.sinks:
        name = f"sink_{name}"
    _cpu.call(TEAMS[workers], name, [operand(tensor) for tensor in operands], operand(out), numbers, [])
    return out


def reference(step: Step, attributes: Attributes) -> Tensor:
    K, E = step.cache.shape[3:]
    kept = stored(step.cache, attributes)
    kept = dequantize(kept, K, E, torch.float64) if attributes.cache == "int8" else kept.double()
    wide = replace(step, q=step.q.double(), cache=kept, sinks=step.sinks.double())
    if attributes.latent:
        q, rotated, rows = operands_of(wide, attributes)[:3]
        shared = step.spans, step.lengths, step.tables, 0
        return latent_attention(q, rotated, rows, *shared, scale=attributes.scale, window=attributes.window)
    if attributes.sinks:
        return sink_attention(*wide.with_sinks(), scale=attributes.scale, window=attributes.window, softcap=attributes.softcap)
    return attention(*wide.operands(), scale=attributes.scale, window=attributes.window, softcap=attributes.softcap)


def check(step: Step, attributes: Attributes, dtype: str) -> None:
    expected = reference(step, attributes)
    for workers in TEAMS:
        result = run(step, attributes, workers)
        torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])


def spoil(step: Step, window: int) -> None:
    """What no new token sees of a sequence's past: NaN in pages that the oldest seen key shares, no page at all before them."""
    page_size = step.cache.shape[1]
    for row, ((first, last), length) in enumerate(zip(step.spans.tolist(), step.lengths.tolist(), strict=True)):
        if last > first and (oldest := oldest_key(last - first, length, window)):
            step.cache[step.tables[row, oldest // page_size], : oldest % page_size] = torch.nan
            step.tables[row, : oldest // page_size] = -(10**9)
        step.tables[row, -(-length // page_size) :] = 10**9


def permuted(step: Step) -> Step:
    order = torch.randperm(len(step.cache))
    cache = torch.full_like(step.cache, torch.nan)
    cache[order] = step.cache
    return replace(step, cache=cache, tables=order[step.tables.long()].int())


def cut(step: Step, sequence: int, begin: int, end: int) -> Step:
    """New tokens begin to before end of a sequence as a step of their own, with nothing after them in the cache."""
    alone = only(step, sequence)
    length = int(alone.lengths[0]) - alone.q.shape[0] + end
    page_size = alone.cache.shape[1]
    cache = alone.cache.clone()
    pages = alone.tables[0].tolist()
    for page, number in enumerate(pages):
        cache[number, max(0, min(page_size, length - page * page_size)) :] = torch.nan
    spans = torch.tensor([[0, end - begin]], dtype=torch.int32)
    return Step(alone.q[begin:end], cache, spans, torch.tensor([length], dtype=torch.int32), alone.tables, alone.sinks)


generated = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
heads = st.tuples(st.integers(1, 3), st.integers(1, 8), st.sampled_from([4, 7, 16, 20, 33, 64, 80, 128]))
windows = st.sampled_from([0, 1, 3, 8, 100, 300])
dtypes = st.sampled_from(["f32", "bf16"])
caches = st.sampled_from(["rows", "int8", "fp8"])
kinds = st.sampled_from(
    [
        *({}, {"cache": "int8"}, {"cache": "fp8"}, {"latent": True}, {"latent": True, "cache": "fp8"}),
        *({"sinks": True}, {"sinks": True, "cache": "int8"}, {"sinks": True, "cache": "fp8"}),
    ]
)
attributes_of_any_kind = st.builds(
    lambda window, softcap, kind: Attributes(window, softcap, **kind), windows, st.sampled_from([0.0, 2.0]), kinds
)
page_sizes = st.sampled_from([1, 3, 4, 16, 32])
longer = st.lists(st.tuples(st.sampled_from([0, 1, 200, 255, 256, 300, 511, 600]), st.integers(1, 40)), min_size=1, max_size=3)


@generated
@given(
    sequences=st.one_of(sequences, decodes, longer),
    page_size=page_sizes,
    heads=heads,
    dtype=dtypes,
    window=windows,
    softcap=st.sampled_from([0.0, 2.0]),
    cache=caches,
    sinks=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_attention_agrees_with_reference(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: tuple[int, int, int],
    dtype: str,
    window: int,
    softcap: float,
    cache: Literal["rows", "int8", "fp8"],
    sinks: bool,
    seed: int,
) -> None:
    K, G, E = heads
    E += cache == "int8" and E % 2
    step = make_step(sequences, page_size=page_size, K=K, G=G, E=E, dtype=dtype, seed=seed)
    check(step, Attributes(window, softcap, E**-0.5, cache=cache, sinks=sinks), dtype)


@generated
@given(
    sequences=st.one_of(sequences, decodes, longer),
    page_size=page_sizes,
    heads=st.integers(1, 20),
    width=st.sampled_from([5, 16, 36, 68, 132]),
    dtype=dtypes,
    window=windows,
    cache=st.sampled_from(["rows", "fp8"]),
    seed=st.integers(0, 2**31),
)
def test_latent_attention_agrees_with_reference(
    sequences: list[tuple[int, int]],
    page_size: int,
    heads: int,
    width: int,
    dtype: str,
    window: int,
    cache: Literal["rows", "fp8"],
    seed: int,
) -> None:
    step = make_step(sequences, page_size=page_size, K=1, G=heads, E=width, dtype=dtype, seed=seed)
    check(step, Attributes(window, 0.0, width**-0.5, latent=True, cache=cache), dtype)


@generated
@given(
    sequences=st.one_of(sequences, decodes, longer),
    page_size=page_sizes,
    G=st.integers(1, 8),
    dtype=dtypes,
    attributes=attributes_of_any_kind,
    seed=st.integers(0, 2**31),
)
def test_a_sequence_has_the_same_bits_in_any_company(
    sequences: list[tuple[int, int]], page_size: int, G: int, dtype: str, attributes: Attributes, seed: int
) -> None:
    step = make_step(sequences, page_size=page_size, K=1 if attributes.latent else 2, G=G, E=36, dtype=dtype, seed=seed)
    together = run(step, attributes)
    assert not together.isnan().any()
    assert torch.equal(run(step, attributes, workers=2), together)
    assert torch.equal(run(permuted(step), attributes), together)
    for sequence in range(len(sequences)):
        assert torch.equal(run(only(step, sequence), attributes, workers=2), together[slice(*step.spans[sequence].tolist())])
    spoil(step, attributes.window)
    assert torch.equal(run(step, attributes, workers=2), together)


@generated
@given(
    before=st.sampled_from([0, 3, 250, 500]),
    chunks=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    page_size=page_sizes,
    G=st.integers(1, 8),
    dtype=dtypes,
    attributes=attributes_of_any_kind,
    seed=st.integers(0, 2**31),
)
def test_a_token_has_the_same_bits_in_a_chunk_of_any_size(
    before: int, chunks: list[int], page_size: int, G: int, dtype: str, attributes: Attributes, seed: int
) -> None:
    new = sum(chunks)
    step = make_step([(before, new)], page_size=page_size, K=1, G=G, E=36, dtype=dtype, seed=seed)
    whole = run(step, attributes)
    ends = torch.tensor(chunks).cumsum(0).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        assert torch.equal(run(cut(step, 0, begin, end), attributes, workers=2), whole[begin:end])
    for token in range(new):
        assert torch.equal(run(cut(step, 0, token, token + 1), attributes), whole[token : token + 1])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("window", [0, 512])
@pytest.mark.parametrize("cache", ["rows", "int8", "fp8"])
def test_a_long_prompt_has_the_bits_of_its_tokens_one_by_one(dtype: str, window: int, cache: Literal["rows", "int8", "fp8"]) -> None:
    step = make_step([(900, 300), (1500, 1)], page_size=16, K=1, G=4, E=64, dtype=dtype)
    attributes = Attributes(window, cache=cache)
    whole = run(step, attributes, workers=2)
    assert torch.equal(run(step, attributes), whole)
    for token in (0, 1, 123, 124, 299):
        assert torch.equal(run(cut(step, 0, token, token + 1), attributes, workers=2), whole[token : token + 1])


@pytest.mark.parametrize("attributes", [PLAIN, Attributes(latent=True), Attributes(cache="int8"), Attributes(cache="fp8")])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_of_no_sequence_give_zeros(dtype: str, attributes: Attributes) -> None:
    step = make_step([(3, 2), (0, 1)], K=1, G=2, E=20, dtype=dtype)
    step.q = torch.cat((step.q[:2], step.q))
    step.spans = torch.tensor([[2, 4], [4, 5]], dtype=torch.int32)
    step.spans = torch.cat((step.spans, torch.zeros(1, 2, dtype=torch.int32)))  # and an empty one
    step.lengths = torch.cat((step.lengths, torch.tensor([7], dtype=torch.int32)))
    step.tables = torch.cat((step.tables, torch.full_like(step.tables[:1], -(10**9))))
    for workers in TEAMS:
        result = run(step, attributes, workers)
        assert not result[:2].any()
        assert result[2:].all()
        assert not run(replace(step, q=torch.cat((step.q, step.q))), attributes, workers)[5:].any()


def test_a_step_without_sequences_gives_zeros() -> None:
    step = make_step([(3, 2)])
    step.spans = torch.zeros_like(step.spans)
    assert not run(step, workers=2).any()


def test_a_shard_takes_its_own_sequences() -> None:
    step = make_step([(3, 2), (300, 1), (0, 3)])
    whole = run(step)
    assert torch.equal(run(replace(step, q=step.q[3:]), shard=1), whole[3:])
    assert torch.equal(run(replace(step, q=step.q[:3]), shard=0), whole[:3])


def test_query_may_be_a_view_of_a_fused_projection() -> None:
    step = make_step([(3, 1), (2, 1), (0, 4)])
    expected = run(step)
    wide = torch.randn(step.q.shape[0], step.q[0].numel() + 24)
    view = wide[:, 8 : 8 + step.q[0].numel()]
    view.copy_(step.q.flatten(1))
    assert torch.equal(run(replace(step, q=view.view(step.q.shape))), expected)
