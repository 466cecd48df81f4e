"""Attention over pages, as XLA's operations and as Pallas kernels in interpret mode: equal to the reference over generated shapes.

Caches hold NaN wherever nothing was written, and tables name pages that do not exist where a window has left them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from tests.jax.arrays import run_jax_kernel
from tests.kernels.test_attention import Step, lose_old_pages, make_step, sequences
from tests.kernels.test_latent_attention import C, R, latent_operands
from torch import Tensor

from tskernels.attention import attention, sink_attention
from tskernels.latent_attention import latent_attention

TOLERANCE = {"f32": 1e-5, "bf16": 2e-2}
KERNELS = ("xla", "pallas")
FIRST = [(0, 7), (5, 1), (0, 0), (30, 20), (6, 3)]
"""Prompts, a token, a sequence without rows, and one that takes two tiles: tokens before, and new ones."""


def attended(kernel: str, op: str, operands: Any, **attributes: Any) -> Tensor:
    def run() -> Tensor:
        made: Tensor = run_jax_kernel(op, *operands, name=kernel, **attributes)
        return made

    if kernel == "xla":
        return run()
    with pltpu.force_tpu_interpret_mode():
        return run()


def padded(step: Step) -> Step:
    """With rows of no sequence at the end, as a bucket has."""
    q = torch.cat((step.q, torch.randn(3, *step.q.shape[1:]).to(step.q.dtype)))
    return Step(q, step.cache, step.spans, step.lengths, step.tables, step.sinks)


def check_attention(kernel: str, step: Step, dtype: str, **attributes: Any) -> None:
    step = padded(step)
    expected = attention(*step.operands(), scale=0.3, **attributes)
    found = attended(kernel, "ts::attention", step.operands(), scale=0.3, **attributes)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])
    assert not found[-3:].any()


def check_latent(kernel: str, step: Step, dtype: str, window: int) -> None:
    operands = latent_operands(padded(step))
    expected = latent_attention(*operands, scale=0.3, window=window)
    found = attended(kernel, "ts::latent_attention", operands, scale=0.3, window=window)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("window", "softcap", "dtype"), [(0, 0.0, "f32"), pytest.param(6, 2.0, "bf16", marks=pytest.mark.slow)])
def test_attention_equals_the_reference(kernel: str, window: int, softcap: float, dtype: str) -> None:
    check_attention(kernel, make_step(FIRST, dtype=dtype), dtype, window=window, softcap=softcap)


@pytest.mark.parametrize("kernel", [pytest.param("xla", marks=pytest.mark.slow), "pallas"])
def test_latent_attention_equals_the_reference(kernel: str) -> None:
    check_latent(kernel, make_step(FIRST, K=1, G=5, E=C + R), "f32", window=0)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_window_has_left_is_not_looked_at(kernel: str) -> None:
    step = make_step([(20, 1), (21, 2)], page_size=4)
    expected = attention(*step.operands(), scale=0.3, window=6, softcap=0.0)
    lose_old_pages(step)
    found = attended(kernel, "ts::attention", step.operands(), scale=0.3, window=6, softcap=0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE["f32"])


@pytest.mark.slow
def test_sinks_equal_the_reference() -> None:
    step = make_step(FIRST)
    expected = sink_attention(*step.with_sinks(), scale=0.3, window=7, softcap=0.0)
    found = attended("xla", "ts::sink_attention", step.with_sinks(), scale=0.3, window=7, softcap=0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE["f32"])


@pytest.mark.slow
def test_ranks_share_out_the_rows() -> None:
    """Of a step of two blocks each rank has the sequences of its own."""
    step = make_step([(3, 4), (0, 2), (9, 3), (2, 3)])
    expected = attention(*step.operands(), scale=0.3, window=0, softcap=0.0)
    for shard in (0, 1):
        operands = (step.q[6 * shard : 6 * shard + 6], *step.operands()[1:5], shard)
        found = attended("xla", "ts::attention", operands, scale=0.3, window=0, softcap=0.0)
        torch.testing.assert_close(found, expected[6 * shard : 6 * shard + 6], rtol=0, atol=TOLERANCE["f32"])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(
    step=sequences,
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    window=st.sampled_from([0, 1, 9]),
    seed=st.integers(0, 99),
)
def test_generated_shapes_equal_the_reference(
    kernel: str, step: list[tuple[int, int]], page_size: int, heads: tuple[int, int], window: int, seed: int
) -> None:
    K, G = heads
    check_attention(kernel, make_step(step, page_size=page_size, K=K, G=G, seed=seed), "f32", window=window, softcap=0.0)
    check_latent(kernel, make_step(step, page_size=page_size, K=1, G=G, E=C + R, seed=seed), "f32", window)
