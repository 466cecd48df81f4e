"""A cache in fp8: what an element becomes, the same to the bit whoever writes it, and what attention makes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.test_attention import TOLERANCE, Step, decodes, make_step, only, sequences
from torch import Tensor

from tskernels.attention import attention
from tskernels.cache_layouts import CACHE_LAYOUTS, FP8_CACHE
from tskernels.dtypes import torch_dtype
from tskernels.fp8_cache import attention_fp8, cache_append_fp8, latent_append_fp8, latent_attention_fp8, narrow
from tskernels.latent_attention import latent_attention
from tskernels.registry import Call, Operand, explain, lookup
from tskernels.simd import is_available
from tskernels.target import CPU, parse_target

native = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")
ISAS = ("avx512_bf16", "avx512", "avx2")
generated = settings(deadline=None, max_examples=25)
VALUES = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
"""All that are not negative and not NaN, in rising order."""


def nearest(x: float) -> float:
    """By the definition: of two that are equally near, the one whose code is even."""
    size = min(abs(x), 448.0)
    best = min(range(127), key=lambda code: (abs(float(VALUES[code]) - size), code % 2))
    return float(VALUES[best]) * (-1 if x < 0 else 1)


@generated
@given(st.lists(st.floats(-600, 600, width=32) | st.floats(-0.03125, 0.03125, width=32), min_size=1, max_size=40))
def test_an_element_becomes_the_nearest(elements: list[float]) -> None:
    assert narrow(torch.tensor(elements)).double().tolist() == [nearest(x) for x in elements]


def test_halves_go_to_even_codes_what_is_large_to_448_and_nan_stays() -> None:
    halves = ((VALUES[1:] + VALUES[:-1]) / 2).float()
    assert narrow(halves).double().tolist() == [nearest(float(x)) for x in halves]
    found = narrow(torch.tensor([464.0, -1e30, torch.inf, -torch.inf, -0.0, torch.nan]))
    assert found.float().nan_to_num(7).tolist() == [448, -448, 448, -448, 0, 7]


def test_a_token_takes_a_byte_an_element() -> None:
    assert CACHE_LAYOUTS[FP8_CACHE].stored("bf16", (2, 3, 64)) == ("f8e4m3", (2, 3, 64))
    assert all(CACHE_LAYOUTS[FP8_CACHE].takes("bf16", row) for row in ((576,), (2, 3, 7)))


def two_of(dtype: str, seed: int, x: int, y: int) -> tuple[Tensor, Tensor]:
    """Views of 7 rows of a joint projection, so wide, with what there is at either end of e4m3 and past it."""
    torch.manual_seed(seed)
    joint = torch.randn(7, 5 + x + y) * 2.0 ** torch.randint(-12, 12, (7, 1))
    joint.view(-1)[torch.randperm(joint.numel())[:4]] = torch.tensor([torch.nan, torch.inf, -torch.inf, 460.0])
    joint = joint.to(torch_dtype(dtype))
    return joint[:, 5 : 5 + x], joint[:, 5 + x :]


@native
@generated
@given(
    sizes=st.tuples(st.integers(1, 3), st.sampled_from([1, 7, 8, 20, 64]), st.sampled_from([1, 3, 16])),
    dtype=st.sampled_from(["f32", "bf16"]),
    latent=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_kernel_writes_the_same_bytes(sizes: tuple[int, int, int], dtype: str, latent: bool, seed: int) -> None:
    from tskernels import _cpu

    K, E, page_size = sizes
    slots = torch.randperm(12 * page_size)[:7].int()
    shape = (12, page_size, K * E + 4) if latent else (12, page_size, 2, K, E)
    x, y = two_of(dtype, seed, K * E, 4 if latent else K * E)
    if not latent:
        x, y = x.view(7, K, E), y.view(7, K, E)

    def empty() -> Tensor:
        return torch.zeros(shape, dtype=torch.float8_e4m3fn)

    expected = (latent_append_fp8 if latent else cache_append_fp8)(empty(), x, y, slots).view(torch.uint8)
    joint = torch.cat((x, y), -1) if latent else torch.stack((x, y), 1)
    op = "ts::latent_append" if latent else "ts::cache_append"
    assert torch.equal(expected.flatten(0, 1)[slots.long()], narrow(joint).view(torch.uint8))
    assert int((expected != 0).flatten(0, 1).flatten(1).any(1).sum()) <= len(slots)
    before = _cpu.isa()
    assert before is not None
    try:
        for isa in filter(_cpu.has_isa, ISAS):
            _cpu.use_isa(isa)
            assert torch.equal(lookup(op, "simd_fp8").function(empty(), x, y, slots).view(torch.uint8), expected), isa
    finally:
        _cpu.use_isa(before)


def run(step: Step, window: int, softcap: float, scale: float, shard: int = 0) -> Tensor:
    out = torch.full(step.q.shape, torch.nan, dtype=step.q.dtype)
    operands = step.q, narrow(step.cache), step.spans, step.lengths, step.tables
    attention_fp8(*operands, shard, scale=scale, window=window, softcap=softcap, out=out)
    return out


def run_latent(step: Step, window: int) -> Tensor:
    q = step.q[:, 0]
    out = torch.full((*q.shape[:2], q.shape[2] - 4), torch.nan, dtype=q.dtype)
    operands = q[..., :-4], q[..., -4:], narrow(step.cache[:, :, 0, 0].contiguous()), step.spans, step.lengths, step.tables
    latent_attention_fp8(*operands, 0, scale=0.3, window=window, out=out)
    return out


@generated
@given(
    sequences=st.one_of(sequences, decodes),
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4), st.sampled_from([7, 8, 20, 64])),
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
    shared = step.spans, step.lengths, step.tables, 0
    kept = narrow(step.cache).double()
    expected = attention(step.q.double(), kept, *shared, scale=0.3, window=window, softcap=softcap)
    result = run(step, window, softcap, 0.3)
    torch.testing.assert_close(result.double(), expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])
    q, rows = step.q[:, 0].double(), kept[:, :, 0, 0]
    of_latents = latent_attention(q[..., :-4], q[..., -4:], rows, *shared, scale=0.3, window=window)
    found = run_latent(step, window)
    torch.testing.assert_close(found.double(), of_latents, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype])
    for sequence in range(len(sequences)):
        place = slice(*step.spans[sequence].tolist())
        assert torch.equal(run(only(step, sequence), window, softcap, 0.3), result[place])
        assert torch.equal(run_latent(only(step, sequence), window), found[place])


def cached(op: str, layout: str) -> Call:
    """A call on a cache of heads, or of latent rows."""
    ints, pairs = Operand("i32", (None,)), Operand("i32", (None, None))
    heads, rows = Operand("bf16", (None, None, 2, 2, 64), layout), Operand("bf16", (None, None, 72), layout)
    match op:
        case "ts::cache_append":
            return Call(op, (heads, *[Operand("bf16", (None, 2, 64))] * 2, ints))
        case "ts::latent_append":
            return Call(op, (rows, Operand("bf16", (None, 64)), Operand("bf16", (None, 8)), ints))
        case "ts::latent_attention":
            queries = Operand("bf16", (None, 4, 64)), Operand("bf16", (None, 4, 8))
            return Call(op, (*queries, rows, pairs, ints, pairs), {"scale": 1.0, "window": 0})
    sinks = (Operand("bf16", (2, 3)),) if op == "ts::sink_attention" else ()
    attributes = {"scale": 1.0, "window": 0, "softcap": 0.0}
    return Call(op, (Operand("bf16", (None, 2, 3, 64)), heads, *sinks, pairs, ints, pairs), attributes)


OPS = ["ts::cache_append", "ts::latent_append", "ts::attention", "ts::sink_attention", "ts::latent_attention"]


@pytest.mark.parametrize("op", OPS)
def test_only_kernels_of_the_layout_are_given_it(op: str) -> None:
    for target in (CPU, parse_target("cpu")):
        can = [c.kernel.name for c in explain(cached(op, FP8_CACHE), target) if c.reason is None]
        assert set(can) == {"torch_fp8", *(["simd_fp8"] if is_available() and target != CPU else [])}
        assert not any("fp8" in c.kernel.name for c in explain(cached(op, "rows"), target) if c.reason is None)
