"""Layouts of weights: what is stored gives back the rows, has the shape that the table says, and is what the kernels read."""

from __future__ import annotations

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.bounds import gated_expected, linear_expected
from tests.kernels.quantized_sources import source
from torch import Tensor

from tskernels.cache_layouts import CACHE_LAYOUTS
from tskernels.dtypes import dtype_name, torch_dtype
from tskernels.layouts import FROM_FLOATS, GATED_PANELS, LAYOUTS, PANELS, QUANTIZED, STACKED, format_of, gated, layout
from tskernels.quantized import FORMATS
from tskernels.registry import ROWS, Call, Operand, explain, kernels, lookup, op_named, ops
from tskernels.simd import SIMD_PANELS, TARGET, is_available

generated = settings(deadline=None, max_examples=60)
needs_simd = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")
RELATIVE = {"f32": 2.0**-20, "bf16": 2.0**-7}
EXACT = sorted(name for name in LAYOUTS if format_of(name) is None)
sizes = st.integers(1, 70)


def weight(dtype: str, outputs: int, inner: int) -> Tensor:
    return torch.randn(outputs, inner).to(torch_dtype(dtype))


@generated
@given(name=st.sampled_from(EXACT), dtype=st.sampled_from(["f32", "bf16"]), half=sizes, inner=sizes, strided=st.booleans())
def test_what_is_stored_gives_back_the_rows(name: str, dtype: str, half: int, inner: int, strided: bool) -> None:
    found, w = layout(name), weight(dtype, 2 * half, inner)
    w = w.t().contiguous().t() if strided else w
    assert found.takes(dtype, w.shape)
    stored = found.pack(w)
    assert (dtype_name(stored.dtype), tuple(stored.shape)) == found.stored(dtype, w.shape)
    assert name == ROWS or stored.is_contiguous()
    if found.unpack is None:  # a help to the rows
        return
    back = found.unpack(stored, w.shape)
    assert back.dtype == w.dtype
    assert torch.equal(back, w)


def test_a_panel_has_outputs_side_by_side() -> None:
    w = torch.arange(40 * 3).reshape(40, 3)
    stored = layout(PANELS).pack(w.float())
    assert stored.shape == (2, 3, 32)
    assert stored[0, 1].tolist() == w[:32, 1].tolist()
    assert stored[1, 2].tolist() == [*w[32:, 2].tolist(), *[0] * 24]
    pairs = layout(PANELS).pack(w.bfloat16())
    assert pairs.shape == (2, 2, 32, 2)
    assert pairs[0, 0, 5].tolist() == w[5, :2].tolist()
    assert pairs[0, 1, 5].tolist() == [w[5, 2], 0]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_stacked_weights_are_each_in_panels(dtype: str) -> None:
    w = torch.randn(3, 40, 7).to(torch_dtype(dtype))
    stored, unpack = layout(PANELS).pack(w), layout(PANELS).unpack
    assert unpack is not None
    assert (dtype_name(stored.dtype), tuple(stored.shape)) == layout(PANELS).stored(dtype, w.shape)
    assert torch.equal(stored[1], layout(PANELS).pack(w[1]))
    assert torch.equal(unpack(stored, w.shape), w)


def test_a_gated_panel_has_gates_and_then_what_they_gate() -> None:
    w = torch.arange(2 * 20 * 3).reshape(40, 3)
    stored = layout(GATED_PANELS).pack(w.float())
    assert stored.shape == (2, 3, 32)
    assert stored[0, 1].tolist() == [*w[:16, 1].tolist(), *w[20:36, 1].tolist()]
    assert stored[1, 0].tolist() == [*w[16:20, 0].tolist(), *[0] * 12, *w[36:, 0].tolist(), *[0] * 12]


@pytest.mark.parametrize("name", [PANELS, GATED_PANELS])
def test_what_can_not_be_in_panels_is_told(name: str) -> None:
    takes = layout(name).takes
    assert not takes("f64", (64, 64))
    assert takes("f32", (4, 64, 64)) == (name == PANELS)
    assert not takes("f32", (2, 4, 64, 64))
    assert not takes("f32", (64,))
    assert takes("f32", (63, 64)) == (name == PANELS)


def test_each_format_has_a_layout_and_one_of_gates() -> None:
    assert {*QUANTIZED, *STACKED} == set(FORMATS)
    assert {name for name, form in FORMATS.items() if not form.row_block_bytes} == set(FROM_FLOATS) - {"q8_0"}
    for name in QUANTIZED:
        assert format_of(name) == format_of(f"gated_{name}") == name
        assert gated(name) == f"gated_{name}"
        assert gated(f"gated_{name}") is None
        assert not layout(name).is_chosen
    assert gated(ROWS) == ROWS
    assert gated(PANELS) == GATED_PANELS
    assert format_of(PANELS) is None


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("is_gated", [False, True])
def test_a_quantized_weight_is_bytes_that_give_back_its_values(name: str, is_gated: bool) -> None:
    found, shape, rows = layout(f"gated_{name}" if is_gated else name), (70, 256), source(FORMATS[name], 70, 256, 0)
    stored = found.pack(rows)
    assert (dtype_name(stored.dtype), tuple(stored.shape)) == found.stored("bf16", shape)
    assert found.unpack is not None
    plain = layout(name).unpack
    assert plain is not None
    assert torch.equal(found.unpack(stored, shape), plain(layout(name).pack(rows), shape))
    assert found.takes("bf16", shape)
    assert found.takes("bf16", (71, 256)) != is_gated
    assert found.takes("f32", (70, 250)) == (name in ("int8", "int4"))
    assert not found.takes("f64", shape)
    assert not found.takes("f32", (256,))


def test_floats_are_rounded_to_q8_0_as_a_gguf_has_them() -> None:
    w = torch.randn(40, 96)
    w[3] = 0
    blocks = gguf.quantize(w.numpy(), gguf.GGMLQuantizationType.Q8_0)
    values = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0))
    unpack = layout("q8_0").unpack
    assert unpack is not None
    found = unpack(layout("q8_0").pack(w.bfloat16()), (40, 96))
    assert float((found - w.bfloat16().float()).norm()) < 0.008 * float(w.norm())
    # gguf divides by a scale that is not rounded yet.
    assert float((unpack(layout("q8_0").pack(w), (40, 96)) - w).norm()) <= float((values - w).norm())
    assert torch.equal(unpack(layout("q8_0").pack(values), (40, 96)), values)


@needs_simd
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_kernels_read_quantized_weights(name: str, dtype: str) -> None:
    torch.manual_seed(0)
    x, rows = torch.randn(5, 256).to(torch_dtype(dtype)), source(FORMATS[name], 70, 256, 0)
    values = FORMATS[name].unpack(FORMATS[name].pack(rows), 70, 256)
    for op, attributes in (("ts::linear", {}), ("ts::gated_linear", {"activation": "silu"})):
        kernel = lookup(op, f"simd_{name}")
        expected = op_named(op).reference(x.float(), values, **attributes)
        out = torch.full_like(expected, torch.nan).to(x.dtype)
        kernel.function(x, layout(kernel.layouts[1]).pack(rows), **attributes, out=out)
        assert float((out.float() - expected).norm()) < 0.03 * float(expected.norm()), op  # activations of 8 bits
    kernel, ids = lookup("ts::embedding", f"simd_{name}"), torch.tensor([0, 69, 3, 70], dtype=torch.int32)
    assert kernel.constants is not None
    table = Operand(dtype, (70, 256), name)
    constants = kernel.constants(Call("ts::embedding", (Operand("i32", (None,)), table)))
    assert constants == [70]
    out = torch.empty(4, 256, dtype=x.dtype)
    kernel.function(ids, layout(name).pack(rows), 0, constants=constants, out=out)
    assert torch.equal(out, torch.cat([values[[0, 69, 3]], torch.zeros(1, 256)]).to(x.dtype))
    with pytest.raises(TypeError, match="is to be given its constants"):
        kernel.function(ids, layout(name).pack(rows), 0, out=out)


def test_kernels_take_layouts_that_there_are() -> None:
    for name in ops():
        for kernel in kernels(name):
            assert set(kernel.layouts.values()) <= {*LAYOUTS, *CACHE_LAYOUTS}


@needs_simd
@generated
@given(
    op=st.sampled_from(["ts::linear", "ts::gated_linear"]),
    dtype=st.sampled_from(["f32", "bf16"]),
    tokens=st.integers(1, 20),
    outputs=sizes,
    inner=sizes,
    activation=st.sampled_from(["silu", "gelu", "gelu_tanh"]),
    seed=st.integers(0, 2**31),
)
def test_kernels_read_what_is_stored(op: str, dtype: str, tokens: int, outputs: int, inner: int, activation: str, seed: int) -> None:
    torch.manual_seed(seed)
    kernel = lookup(op, SIMD_PANELS)
    attributes = {} if op == "ts::linear" else {"activation": activation}
    x = torch.randn(tokens, inner).to(torch_dtype(dtype))
    w = (torch.randn(outputs if op == "ts::linear" else 2 * outputs, inner) / inner**0.5).to(torch_dtype(dtype))
    expected, bound = linear_expected(x, w) if op == "ts::linear" else gated_expected(x, w, activation)
    out = torch.full_like(expected, torch.nan, dtype=x.dtype)
    kernel.function(x, layout(kernel.layouts[1]).pack(w), **attributes, out=out)
    assert ((out.double() - expected).abs() <= bound).all()


@needs_simd
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_panels_cost_less_than_rows_unless_outputs_are_few(dtype: str) -> None:
    def costs(outputs: int) -> dict[str, float]:
        x, w = Operand(dtype, (None, 2048)), Operand(dtype, (outputs, 2048), PANELS)
        return {c.kernel.name: c.cost_seconds for c in explain(Call("ts::linear", (x, w)), TARGET)}

    for outputs in (32, 576, 50000):
        assert costs(outputs)["simd_panels"] < costs(outputs)["simd"] < costs(outputs)["torch"]
    assert costs(8)["simd"] < costs(8)["simd_panels"]
