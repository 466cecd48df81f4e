"""Latent attention: against attention with the same keys for every head, the kernel against the reference, bits in any company."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.test_attention import TOLERANCE, Step, decodes, lose_old_pages, make_step, only, sequences
from torch import Tensor

from tskernels.attention import attention
from tskernels.latent_attention import latent_attention, latent_attention_torch

C, R = 12, 4


def latent_operands(step: Step) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Queries of a step with one K/V head become latent and rotated parts; keys are the cache's rows."""
    q = step.q[:, 0]
    rows = step.cache[:, :, 0, 0].contiguous()
    return (q[..., :C], q[..., C:], rows, step.spans, step.lengths, step.tables, 0)


def test_reference_is_attention_with_one_key_head_whose_values_are_part_of_the_keys() -> None:
    step = make_step([(0, 7), (5, 1), (6, 3)], K=1, G=3, E=C + R)
    step.cache[:, :, 1] = step.cache[:, :, 0]
    for window in (0, 3):
        expected = attention(*step.operands(), scale=0.3, window=window, softcap=0.0)[:, 0, :, :C]
        result = latent_attention(*latent_operands(step), scale=0.3, window=window)
        torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE["f32"])


def run(step: Step, window: int = 0) -> Tensor:
    operands = latent_operands(step)
    out = torch.full(operands[0].shape, torch.nan, dtype=step.q.dtype)
    latent_attention_torch(*operands, scale=0.3, window=window, out=out)
    return out


def reference(step: Step, window: int = 0) -> Tensor:
    return latent_attention(*latent_operands(step), scale=0.3, window=window)


@pytest.mark.parametrize("subject", [run, reference], ids=["kernel", "reference"])
def test_window_reads_only_its_pages(subject: Callable[[Step, int], Tensor]) -> None:
    step = make_step([(20, 1), (21, 2)], page_size=4, K=1, G=3, E=C + R)
    expected = subject(step, 6)
    lose_old_pages(step)
    assert torch.equal(subject(step, 6), expected)
    assert not expected.isnan().any()


@settings(deadline=None, max_examples=60)
@given(
    sequences=sequences,
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.integers(1, 5),
    dtype=st.sampled_from(["f32", "bf16", "f64"]),
    window=st.sampled_from([0, 1, 8]),
    seed=st.integers(0, 2**31),
)
def test_kernel_agrees_with_reference(
    sequences: list[tuple[int, int]], page_size: int, heads: int, dtype: str, window: int, seed: int
) -> None:
    step = make_step(sequences, page_size=page_size, K=1, G=heads, E=C + R, dtype=dtype, seed=seed)
    expected = reference(step, window)
    # bf16: the scores are rounded too, before the softmax
    tolerance = TOLERANCE[dtype] * (4 if dtype == "bf16" else 1)
    torch.testing.assert_close(run(step, window), expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(sequences=st.one_of(sequences, decodes), dtype=st.sampled_from(["f32", "bf16"]), seed=st.integers(0, 2**31))
def test_a_sequence_has_the_same_bits_in_any_company(sequences: list[tuple[int, int]], dtype: str, seed: int) -> None:
    step = make_step(sequences, K=1, G=4, E=C + R, dtype=dtype, seed=seed)
    together = run(step)
    for sequence in range(len(sequences)):
        bounds = slice(*step.spans[sequence].tolist())
        assert torch.equal(together[bounds], run(only(step, sequence)))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_that_pad_a_step_are_zeros(dtype: str) -> None:
    step = make_step([(3, 2), (0, 1)], K=1, G=2, E=C + R, dtype=dtype)
    step.q = torch.cat((step.q, step.q[:2]))
    assert not run(step)[3:].any()
    assert run(step)[:3].all()
