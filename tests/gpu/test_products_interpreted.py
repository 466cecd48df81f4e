"""Gated and quantized products, mixtures of experts, and recurrences, against f64."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.against_float64 import DTYPES, UNIT, check, run
from torch import Tensor
from torch.nn import functional

import tskernels.gpu
from tskernels.gpu.linear import FORMS
from tskernels.layouts import AFFINE, FROM_FLOATS, blocks_of_codes, layout
from tskernels.recurrent import gated_delta, short_conv
from tskernels.registry import lookup

SPANS = torch.tensor([[0, 3], [3, 4], [4, 10], [12, 12]], dtype=torch.int32)
STATES = torch.tensor([2, ~0, 1, 3], dtype=torch.int32)


@pytest.mark.parametrize(("tokens", "dtype"), [(1, "bf16"), (1, "f16"), (2, "bf16"), (16, "f16"), (17, "bf16")])
def test_linear_of_one_row_of_few_and_of_many(tokens: int, dtype: str) -> None:
    for inner, outputs in ((304, 41), (2600, 6)):  # part of what a block takes at a time, and more than that
        x, w = torch.randn(tokens, inner + 16).to(DTYPES[dtype])[:, 8:-8], torch.randn(outputs, inner).to(DTYPES[dtype]) / 10
        check("ts::linear", x, w, slack=0.01)
        check("ts::linear", x, w, torch.randn(outputs).to(x.dtype), slack=0.01)


@pytest.mark.parametrize(
    ("tokens", "dtype", "activation"),
    [(1, "bf16", "silu"), (1, "f16", "gelu"), (3, "bf16", "silu"), (3, "f32", "gelu"), (3, "f16", "gelu_tanh"), (70, "bf16", "gelu_tanh")],
)
def test_gated_linear(tokens: int, dtype: str, activation: str) -> None:
    x = torch.randn(tokens, 136).to(DTYPES[dtype])[:, 3:99]
    check("ts::gated_linear", x, torch.randn(80, 96).to(x.dtype) / 10, slack=1.0 if dtype == "f32" else 0.01, activation=activation)


def packed_from(form: str, outputs: int, inputs: int) -> Tensor:
    """What a weight of a form is packed from: floats, or the blocks of a checkpoint."""
    if form in FROM_FLOATS:
        return torch.randn(outputs, inputs)
    if form in AFFINE:
        groups, most = inputs // int(form.partition("_")[2]), 1 << int(form[6])
        codes, zeros = (torch.randint(most, (outputs, n), dtype=torch.uint8) for n in (inputs, groups))
        return blocks_of_codes(form, codes, torch.rand(outputs, groups) / 8, zeros)
    scales = [(torch.randn(outputs, inputs // 32, 1) / 8).half().view(torch.uint8) for _ in range(2 if form == "q4_1" else 1)]
    return torch.cat([*scales, torch.randint(256, (outputs, inputs // 32, 16), dtype=torch.uint8)], -1).flatten(1)


def values(name: str, stored: Tensor, outputs: int, inputs: int) -> Tensor:
    unpack = layout(name).unpack
    assert unpack is not None
    return unpack(stored, (outputs, inputs)).double()


def assert_close(result: Tensor, expected: Tensor, sizes: Tensor) -> None:
    bound = UNIT[result.dtype] * expected.abs() + 2.0**-19 * sizes
    assert ((result.double() - expected).abs() <= bound).all()


EVERYDAY = ("int8", "int4", "affine4_32")


@pytest.mark.parametrize(
    ("form", "tokens"),
    [pytest.param(f, t, marks=() if f in EVERYDAY and t == 3 else pytest.mark.slow) for f in FORMS for t in (3, 40)],
)
def test_products_with_quantized_weights_are_those_with_their_values(form: str, tokens: int) -> None:
    outputs, inputs = 40, 100 if form == "int8" else 128
    torch.manual_seed(0)  # of some numbers a gated product is larger than f16 has
    for dtype in DTYPES.values():
        x, bias, given = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs).to(dtype), packed_from(form, outputs, inputs)
        stored = layout(form).pack(given)
        w = values(form, stored, outputs, inputs)
        sizes = functional.linear(x.double().abs(), w.abs(), bias.double().abs()) + 8 * functional.linear(x.double().abs(), 1 + 0 * w)
        for with_bias in (False, True):
            operands = (x, stored, bias) if with_bias else (x, stored)
            result = run("ts::linear", *operands, shape=(tokens, outputs), dtype=dtype, kernel=f"triton_{form}")
            assert_close(result, functional.linear(x.double(), w, bias.double() if with_bias else None), sizes)
        gated = layout(f"gated_{form}")
        stored = gated.pack(given)
        w = values(f"gated_{form}", stored, outputs, inputs)
        result = run("ts::gated_linear", x, stored, shape=(tokens, outputs // 2), dtype=dtype, kernel=f"triton_{form}", activation="silu")
        gate, up = functional.linear(x.double(), w).chunk(2, -1)
        of_gate, of_up = (functional.linear(x.double().abs(), w.abs() + 8)).chunk(2, -1)
        assert_close(result, functional.silu(gate) * up, of_gate * (up.abs() + 1) + of_up * (gate.abs() + 1))


ROUTE: dict[str, Any] = {"top_k": 2, "score": "softmax", "normalize": True, "scale": 1.5, "groups": 1, "top_groups": 1, "group_best": 1}
GROUPED = ROUTE | {"top_k": 4, "groups": 4, "top_groups": 2, "group_best": 2}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_route(dtype: str) -> None:
    logits, bias = torch.randn(5, 20).to(DTYPES[dtype]), torch.randn(24)
    check("ts::route", logits, **ROUTE)
    check("ts::route", logits, bias[:20].to(logits.dtype), **(ROUTE | {"top_k": 7, "score": "sigmoid"}))
    grouped = torch.randn(5, 24).to(DTYPES[dtype])
    check("ts::route", grouped, bias.to(logits.dtype), **(GROUPED | {"score": "sigmoid", "normalize": False}))
    check("ts::route", grouped * 0, **GROUPED)  # of equals the first


def mixture(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    weights = torch.rand(tokens, 6).to(dtype)
    weights[torch.rand(tokens, 6) < 0.6] = 0
    x, gate, up, down = (torch.randn(*s).to(dtype) / 5 for s in ((tokens, 40), (6, 24, 40), (6, 24, 40), (6, 40, 24)))
    return [5 * x, weights, gate, up, down]


@pytest.mark.parametrize(("tokens", "dtype"), [(3, "f32"), (3, "bf16"), (3, "f16"), pytest.param(300, "bf16", marks=pytest.mark.slow)])
def test_experts(tokens: int, dtype: str) -> None:
    operands = mixture(tokens, DTYPES[dtype])
    biases = [torch.randn(*s).to(DTYPES[dtype]) for s in ((6, 24), (6, 24), (6, 40))]
    # What is between the products is rounded, too: sums of 24 numbers of up to 4 or so, for each expert.
    check("ts::experts", *operands, slack=8.0)
    check("ts::experts", *operands, *biases, slack=8.0, alpha=1.7, limit=1.0, offset=1.0)


def test_a_token_with_more_experts_than_there_is_room_for_is_broken_and_no_other() -> None:
    weights = torch.rand(3, 20)
    weights[1, 4:] = 0
    operands = (torch.randn(3, 8), weights, torch.randn(20, 4, 8), torch.randn(20, 4, 8), torch.randn(20, 8, 4))
    result = run("ts::experts", *operands, shape=(3, 8), dtype=torch.float32)
    assert result.isnan().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_short_conv_and_its_states(dtype: str) -> None:
    x, w = torch.randn(12, 2, 20).to(DTYPES[dtype])[..., 3:15], torch.randn(2, 12, 1, 4).to(DTYPES[dtype])
    state = torch.randn(5, 3, 2, 12)
    wide_state = state.double()
    result = run("ts::short_conv", x, w, state, SPANS, STATES, 0, shape=tuple(x.shape), dtype=x.dtype)
    expected = short_conv(x.double(), w.double(), wide_state, SPANS, STATES, 0)
    assert float((result.double() - expected).abs().max()) <= UNIT[x.dtype] * float(expected.abs().max())
    assert torch.equal(state.double(), wide_state.float().double())


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_gated_delta_and_its_states(dtype: str) -> None:
    q, k, v = (torch.randn(*s).to(DTYPES[dtype]) for s in ((12, 2, 24), (12, 2, 24), (12, 2, 1, 40)))
    decays, gains = torch.rand(12, 2, 1), torch.rand(12, 2, 2).to(DTYPES[dtype])[..., ::2]
    state = torch.randn(5, 2, 1, 24, 40)
    wide_state = state.double()
    out = torch.full(v.shape, torch.nan, dtype=v.dtype)
    lookup("ts::gated_delta", "triton").function(q, k, v, decays, gains, state, SPANS, STATES, 0, scale=0.3, eps=1e-6, out=out)
    operands = (q.double(), k.double(), v.double(), decays.double(), gains.double(), wide_state, SPANS, STATES, 0)
    expected = gated_delta(*operands, scale=0.3, eps=1e-6)
    assert float((out.double() - expected).abs().max()) <= UNIT[v.dtype] * float(expected.abs().max())
    torch.testing.assert_close(state.double(), wide_state, rtol=1e-5, atol=1e-5)


def test_products_are_made_in_one_place() -> None:
    """The interpreter's own products of bf16 are garbage, so that no kernel may call `tl.dot` by itself."""
    folder = Path(tskernels.gpu.__file__).parent
    found = [path.name for path in folder.glob("*.py") if re.search(r"\btl\.dot\(", path.read_text(encoding="utf-8"))]
    assert found == ["functions_triton.py"]
