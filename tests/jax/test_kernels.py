"""Kernels as XLA's operations against the references, over shapes and element types; attention has tests of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.jax.arrays import run_jax_kernel
from torch import Tensor

from tskernels.registry import op_named

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
_ROUTE = {"top_k": 3, "normalize": True, "scale": 1.7}
_GROUPED = _ROUTE | {"score": "sigmoid", "groups": 4, "top_groups": 2, "group_best": 2}
_FLAT = _ROUTE | {"score": "softmax", "groups": 1, "top_groups": 1, "group_best": 1}
_ROPE = {"theta": 1000.0, "interleaved": False}
_YARN = _ROPE | {"kind": "yarn", "parameters": [8.0, 16.0, 4.0, 1.0, 0.9, 1.0], "interleaved": True}
_POSITIONS = torch.tensor([0, 5, 77], dtype=torch.int32)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


OPERANDS: Sequence[tuple[str, Sequence[Any], dict[str, Any]]] = (
    *((f"ts::{name}", [floats(3, 8)], {}) for name in ("silu", "sigmoid", "gelu", "gelu_tanh", "row_squares", "row_max", "row_sum")),
    *((f"ts::{name}", [floats(3, 8), floats(8, 3).T.contiguous()], {}) for name in ("add", "mul")),
    ("ts::scale", [floats(3, 8)], {"factor": 0.3}),
    ("ts::scale_rows", [floats(3, 8), floats(3, 1)], {}),
    ("ts::softcap", [floats(3, 8)], {"cap": 2.0}),
    ("ts::rms_norm", [floats(3, 8), floats(8)], {"eps": 0.1, "offset": 1.0}),
    ("ts::rms_scale", [floats(3, 2, 4), floats(3).square(), floats(2, 4)], {"eps": 0.1, "offset": 1.0, "count": 16}),
    ("ts::linear", [floats(3, 8), floats(5, 8), floats(5)], {}),
    ("ts::gated_linear", [floats(3, 8), floats(10, 8)], {"activation": "gelu_tanh"}),
    ("ts::einsum", [floats(3, 2, 8), floats(2, 8, 5)], {"equation": "the,hec->thc"}),
    ("ts::embedding", [torch.tensor([0, 9, 7], dtype=torch.int32), floats(5, 8), 1], {}),
    ("ts::take_rows", [floats(3, 8), torch.tensor([2, 0], dtype=torch.int32)], {}),
    ("ts::rope", [floats(3, 2, 8), _POSITIONS], _ROPE | {"kind": "linear", "parameters": [4.0], "fraction": 0.5}),
    ("ts::rope", [floats(3, 2, 8), _POSITIONS], _YARN),
    ("ts::route", [floats(3, 8), floats(8)], _GROUPED),
    ("ts::route", [floats(3, 8)], _FLAT),
    ("ts::experts", [floats(3, 8), floats(3, 4).relu(), floats(4, 6, 8), floats(4, 6, 8), floats(4, 8, 6)], {}),
    ("ts::exp_minus", [floats(3, 8), floats(3)], {}),
    ("ts::divide_rows", [floats(3, 8), floats(3)], {}),
    ("ts::narrow", [floats(3, 8)], {"start": 2, "length": 3}),
    ("ts::split", [floats(3, 8)], {"sizes": [2, 4]}),
    ("ts::merge", [floats(3, 2, 4)], {"count": 2}),
    ("ts::decay", [floats(3, 4), floats(4), floats(4)], {}),
)


@pytest.mark.parametrize("operands", OPERANDS, ids=[op.removeprefix("ts::") for op, _, _ in OPERANDS])
def test_a_kernel_equals_the_reference(operands: tuple[str, Sequence[Any], dict[str, Any]]) -> None:
    op, given, attributes = operands
    expected = op_named(op).reference(*given, **attributes)
    torch.testing.assert_close(run_jax_kernel(op, *given, **attributes), expected, rtol=0, atol=TOLERANCE[torch.float32])


def test_products_of_bf16_round_once() -> None:
    x, w = floats(3, 64).bfloat16(), floats(5, 64).bfloat16()
    found = run_jax_kernel("ts::linear", x, w)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, op_named("ts::linear").reference(x, w), rtol=0, atol=TOLERANCE[torch.bfloat16] * 8)


def test_keys_have_the_bits_of_the_reference() -> None:
    """Equal numbers, both zeros, infinities and NaN among them."""
    x = torch.tensor([[1.0, -0.0, 0.0, 1.0, -2.0, -torch.inf, 0.5, 0.5], [0.0, -1.0, torch.nan, 3.0, torch.inf, 2.0, -3.0, 0.25]])
    largest = run_jax_kernel("ts::max_key", x, 2)
    assert torch.equal(largest, op_named("ts::max_key").reference(x, 2))
    top = run_jax_kernel("ts::top_keys", x, 1, k=2, width=4)
    assert torch.equal(top, op_named("ts::top_keys").reference(x, 1, 2, 4))
    assert torch.equal(run_jax_kernel("ts::merge_keys", top), op_named("ts::merge_keys").reference(top))
    for op in ("ts::key_index", "ts::key_value"):
        torch.testing.assert_close(run_jax_kernel(op, top), op_named(op).reference(top), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_states_go_on_from_their_pages_and_begin_anew() -> None:
    """Of sequences of 3, 0 and 2 tokens, the last one new, and a row that is none's."""
    spans, states = torch.tensor([[0, 3], [3, 3], [3, 5]], dtype=torch.int32), torch.tensor([1, 3, ~2], dtype=torch.int32)
    x, w, memory = floats(6, 4), floats(4, 1, 3), floats(4, 2, 4)
    kept = memory.clone()
    expected = op_named("ts::short_conv").reference(x, w, kept, spans, states, 0)
    found, written = run_jax_kernel("ts::short_conv", x, w, memory, spans, states, 0)
    torch.testing.assert_close((found, written), (expected, kept), rtol=0, atol=1e-5)
    q, k, v, memory = floats(6, 2, 3), floats(6, 3, 2).mT.contiguous(), floats(6, 2, 2, 5), floats(4, 2, 2, 3, 5)
    decay, beta = floats(6, 2, 2).sigmoid(), floats(6, 4).sigmoid().view(6, 2, 2)
    kept = memory.clone()
    numbers: dict[str, Any] = {"scale": 0.4, "eps": 1e-6}
    expected = op_named("ts::gated_delta").reference(q, k, v, decay, beta, kept, spans, states, 0, **numbers)
    found, written = run_jax_kernel("ts::gated_delta", q, k, v, decay, beta, memory, spans, states, 0, **numbers)
    torch.testing.assert_close((found, written), (expected, kept), rtol=0, atol=1e-5)
