"""Products with quantized weights in C++: against float64, alone and in company, on every instruction set of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.kernels.quantized_sources import source
from torch import Tensor

from tskernels.activation import gelu, gelu_tanh, silu
from tskernels.layouts import QUANTIZED
from tskernels.quantized import FORMATS, Format

_cpu = pytest.importorskip("tskernels._cpu", reason="the C++ kernels are not built")
ISAS = ("avx512_bf16", "avx512", "avx2")
OF_MATRICES = [FORMATS[name] for name in QUANTIZED]
DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int32: "i32"}
SHAPES = {0: ((40, 37), (64, 640)), 32: ((33, 32), (96, 640)), 128: ((50, 128), (64, 640)), 256: ((50, 256), (64, 768))}
"""O and K by what K must be a multiple of."""
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
"""Of the sum of magnitudes (f32), and of the result itself (bf16)."""


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if not _cpu.has_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


def operand(tensor: Tensor) -> Any:
    return "fixed", tensor.data_ptr(), 0, 0, DTYPES[tensor.dtype], tuple(tensor.shape), tuple(tensor.stride())


def run(
    kernel: str, operands: list[Tensor], out: Tensor, numbers: tuple[float, ...] = (), workers: int = 1, constants: tuple[float, ...] = ()
) -> Tensor:
    _cpu.call(_cpu.Team(workers), kernel, [operand(t) for t in operands], operand(out), numbers, constants)
    return out


def weight(form: Format, outputs: int, K: int, gated: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight in panels, and its values."""
    packed = form.pack(source(form, outputs, K, seed), gated)
    return packed, form.unpack(packed, outputs, K, gated).double()


def rounded(x: Tensor, form: Format) -> Tensor:
    """Activations as a kernel computes with them: 8 bits, a scale for each group of 32, or for a token beside `int8`."""
    T, K = x.shape
    width = 32 if form.groups else K
    groups = torch.nn.functional.pad(x.float(), (0, -K % width)).view(T, -1, width)
    most = groups.abs().amax(2, keepdim=True)
    # Not `127 / most`, which torch makes a product with the reciprocal.
    codes = (groups * (torch.full_like(most, 127) / most)).round()
    return (codes.double() * (most / 127).double()).view(T, -1)[:, :K]


def inputs(T: int, K: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(T, K, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: Tensor, want: Tensor, magnitudes: Tensor) -> bool:
    error = (got.double() - want).abs()
    rounded_once = ROUNDING[torch.bfloat16] * want.abs() if got.dtype == torch.bfloat16 else 0
    return bool((error <= ROUNDING[torch.float32] * magnitudes + rounded_once).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", OF_MATRICES, ids=lambda form: form.name)
def test_a_product_is_exact_in_what_the_kernel_rounds_x_to(isa: str, form: Format, dtype: torch.dtype) -> None:
    for outputs, K in SHAPES[form.block_codes]:
        packed, values = weight(form, outputs, K)
        for T in (1, 3, 5, 29):
            x = inputs(T, K, dtype)
            bias = inputs(1, outputs, dtype, seed=2)[0] if T == 3 else None
            out = run(f"linear_{form.name}", [x, packed, *([] if bias is None else [bias])], torch.empty(T, outputs, dtype=dtype))
            as_used = rounded(x, form)
            want = as_used @ values.T + (0 if bias is None else bias.double())
            # What a group is shifted by may cancel: sums of magnitudes with the values' range are what f32 rounds.
            magnitudes = as_used.abs() @ _range(values).T + (0 if bias is None else bias.double().abs())
            assert close(out, want, magnitudes), f"{outputs}x{K}, {T} rows"
            error, size = (out.double() - x.double() @ values.T - (0 if bias is None else bias.double())).norm(), want.norm()
            assert error <= (0.01 if form.groups else 0.02) * size, "8 bits of x cost about half a percent"


def _range(values: Tensor) -> Tensor:
    return values.abs().amax(1, keepdim=True).expand_as(values)


@pytest.mark.parametrize("form", OF_MATRICES, ids=lambda form: form.name)
def test_a_row_has_the_same_bits_in_any_company(isa: str, form: Format) -> None:
    K = 256
    packed, _ = weight(form, 100, K)
    x = inputs(40, K, torch.float32)
    alone = torch.cat([run(f"linear_{form.name}", [x[t : t + 1], packed], torch.empty(1, 100)) for t in range(len(x))])
    for T in (*range(2, 14), 25, 40):
        for workers in (1, 2):
            together = run(f"linear_{form.name}", [x[:T], packed], torch.empty(T, 100), workers=workers)
            assert torch.equal(together, alone[:T]), f"{T} rows, {workers} workers"


@pytest.mark.parametrize("form", OF_MATRICES, ids=lambda form: form.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_of_joined_weights_gates_the_other(isa: str, form: Format, dtype: torch.dtype) -> None:
    K, gates = 256, 43
    packed, values = weight(form, 2 * gates, K, gated=True)
    x = inputs(7, K, dtype)
    gate, up = (rounded(x, form) @ values.T).chunk(2, 1)
    for number, function in enumerate((silu, gelu, gelu_tanh)):
        out = run(f"gated_{form.name}", [x, packed], torch.empty(7, gates, dtype=dtype), (number,), workers=2)
        want = function(gate) * up
        assert ((out.double() - want).abs() <= ROUNDING[dtype] * want.abs() + 1e-4 * want.abs().mean()).all()


@pytest.mark.parametrize("form", OF_MATRICES, ids=lambda form: form.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_a_table_are_its_values(isa: str, form: Format, dtype: torch.dtype) -> None:
    rows, K = 70, 512
    packed, values = weight(form, rows, K)
    ids = torch.tensor([70, 0, 69, 33, 139, 140, 71, 102], dtype=torch.int32)
    out = run(f"embedding_{form.name}", [ids, packed], torch.empty(len(ids), K, dtype=dtype), (1,), workers=2, constants=(rows,))
    local = ids - rows
    inside = (local >= 0) & (local < rows)
    want = torch.where(inside[:, None], values[local.clamp(0, rows - 1)], 0)
    assert torch.equal(out, want.float().to(dtype))


@pytest.mark.parametrize("form", OF_MATRICES, ids=lambda form: form.name)
def test_vectors_of_a_wider_buffer_are_read_where_they_lie(isa: str, form: Format) -> None:
    packed, _ = weight(form, 40, 256)
    wide = inputs(5, 3 * 2 * 300, torch.bfloat16).view(5, 6, 300)
    x = wide[:, 1:3, :256]
    got = run(f"linear_{form.name}", [x, packed], torch.empty(5, 2, 40, dtype=torch.bfloat16))
    want = run(f"linear_{form.name}", [x.reshape(10, 256), packed], torch.empty(10, 40, dtype=torch.bfloat16))
    assert torch.equal(got.view(10, 40), want)


@pytest.mark.parametrize("name", ["int8", "q4_k"])
def test_what_is_not_finite_shows_and_zeros_stay_zeros(isa: str, name: str) -> None:
    form = FORMATS[name]
    packed, _ = weight(form, 40, 256)
    x = torch.zeros(4, 256)
    x[1, 7], x[2, 200], x[3] = torch.nan, torch.inf, 1e-38
    out = run(f"linear_{name}", [x, packed], torch.empty(4, 40))
    assert out[0].eq(0).all()
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()
    assert out[3].abs().max() < 1e-30


def test_the_largest_codes_do_not_overflow(isa: str) -> None:
    for K in (64, 16384):
        form = FORMATS["int8"]
        w, x = torch.ones(32, K), torch.ones(1, K)
        w[1::2], x[:, 1::2] = -1, 1
        out = run("linear_int8", [x, form.pack(w)], torch.empty(1, 32))
        assert torch.equal(out, (x @ w.T))
    raw = source(FORMATS["q8_0"], 32, 64, 0).view(32, 2, 34)
    raw[..., 2:] = 128  # -128, which a quantizer never gives
    packed = FORMATS["q8_0"].pack(raw.view(32, -1))
    values = FORMATS["q8_0"].unpack(packed, 32, 64).double()
    x = torch.full((1, 64), -1.0)
    torch.testing.assert_close(run("linear_q8_0", [x, packed], torch.empty(1, 32)).double(), x.double() @ values.T, rtol=1e-6, atol=0)
