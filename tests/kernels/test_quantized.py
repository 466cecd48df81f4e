"""Quantized weights in panels: values that survive, and errors of rounding."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from tests.kernels.quantized_sources import source

from tskernels.layouts import AFFINE, OF_GGUF, STACKED, layout
from tskernels.quantized import FORMATS, Format
from tskernels.quantized_affine import affine_blocks, int8_rows

OF_FILES = [form for form in FORMATS.values() if form.block_codes]
BITS = {"int8": 8.05, "int4": 5, "q8_0": 8.5, "q4_0": 4.5, "q4_1": 5, "q5_0": 5.5, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625} | {
    "q5_1": 6,
    "q3_k": 4.5625,
    "iq4_nl": 4.5,
    "iq4_xs": 4.3125,
    "affine4_32": 5.25,
    "affine4_128": 4.3125,
    "affine8_32": 9.25,
    "mxfp4": 4.25,
}


def name(form: Format) -> str:
    return form.name


@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
@pytest.mark.parametrize("form", [FORMATS[kind] for kind in OF_GGUF], ids=name)
def test_blocks_of_a_file_keep_their_values(form: Format, gated: bool) -> None:
    for outputs, blocks in ((32, 1), (70, 3)):
        K = blocks * form.block_codes
        rows = source(form, outputs, K, seed=outputs)
        want = torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[form.name.upper()]))
        assert torch.equal(form.unpack(form.pack(rows, gated), outputs, K, gated), want)


@pytest.mark.parametrize("form", [FORMATS[kind] for kind in STACKED], ids=name)
def test_stacked_blocks_keep_their_values(form: Format) -> None:
    """Of every exponent, and the least are no normal floats."""
    rows = torch.stack([source(form, 70, 3 * form.block_codes, seed) for seed in range(3)])
    rows.view(3, 70, 3, -1)[..., 0] = torch.arange(3 * 70 * 3).view(3, 70, 3) % 253
    want = torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[form.name.upper()]))
    found = layout(form.name)
    assert found.unpack is not None
    stored = found.pack(rows)
    assert tuple(stored.shape) == found.stored("bf16", want.shape)[1]
    assert torch.equal(found.unpack(stored, want.shape), want)
    assert not found.takes("f32", (3, 70, 100))
    assert not found.takes("f32", (70, 96))


@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
@pytest.mark.parametrize("form", [FORMATS[kind] for kind in AFFINE], ids=name)
def test_codes_with_zero_points_keep_their_values(form: Format, gated: bool) -> None:
    K, blocks = 3 * form.block_codes, 3
    codes = torch.randint(0, 1 << form.bits, (70, K), dtype=torch.uint8)
    scale, zero = torch.randn(70, blocks), torch.randint(0, 1 << form.bits, (70, blocks), dtype=torch.uint8)
    packed = form.pack(affine_blocks(codes, scale, zero, form.bits), gated)
    wide = [plane.repeat_interleave(form.block_codes, 1) for plane in (scale, zero)]
    assert torch.equal(form.unpack(packed, 70, K, gated), (codes.float() - wide[1].float()) * wide[0])


@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
def test_codes_of_rows_keep_their_values(gated: bool) -> None:
    form = FORMATS["int8"]
    codes, scale = torch.randint(-128, 128, (70, 37), dtype=torch.int8), torch.randn(70)
    assert torch.equal(form.unpack(form.pack(int8_rows(codes, scale), gated), 70, 37, gated), codes.float() * scale[:, None])


@pytest.mark.parametrize("form", FORMATS.values(), ids=name)
def test_panels_take_about_as_much_as_what_they_are_made_of(form: Format) -> None:
    packed = form.pack(source(form, 64, 1024, seed=0))
    assert packed.dtype == torch.uint8
    assert packed.numel() == form.num_bytes(64, 1024)
    assert packed.numel() * 8 / (64 * 1024) <= BITS[form.name] * 1.03


@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
@pytest.mark.parametrize(("form", "bound"), [(FORMATS["int8"], 0.01), (FORMATS["int4"], 0.08)], ids=["int8", "int4"])
def test_floats_are_rounded_to_the_bits_there_are(form: Format, bound: float, gated: bool) -> None:
    for outputs, K in ((32, 64), (50, 37), (6, 1)):
        for dtype in (torch.float32, torch.bfloat16):
            w = source(form, outputs, K, seed=K).to(dtype)
            w[3] = 0
            got = form.unpack(form.pack(w, gated), outputs, K, gated)
            assert (got - w.float()).norm() <= bound * w.float().norm()
            assert got[3].eq(0).all()


def test_int4_gives_up_what_is_rare_for_finer_steps() -> None:
    w = source(FORMATS["int4"], 256, 512, seed=5)
    got = FORMATS["int4"].unpack(FORMATS["int4"].pack(w), 256, 512)
    groups = w.view(256, -1, 32)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / 15
    plain = ((groups - low) / step).round() * step + low
    assert (got - w).norm() < 0.95 * (plain.view_as(w) - w).norm()


def test_packing_what_was_unpacked_changes_nothing() -> None:
    form = FORMATS["int8"]
    once = form.unpack(form.pack(source(form, 40, 96, seed=1)), 40, 96)
    torch.testing.assert_close(form.unpack(form.pack(once), 40, 96), once, rtol=1e-6, atol=0)


def test_rows_do_not_depend_on_how_many_are_packed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in FORMATS.values():
        rows = source(form, 150, 256, seed=2)
        whole = form.pack(rows)
        monkeypatch.setattr("tskernels.quantized._CHUNK", 32 * 256)
        assert torch.equal(form.pack(rows), whole)
        assert torch.equal(form.unpack(whole, 150, 256), form.unpack(form.pack(rows), 150, 256))
        monkeypatch.undo()


@pytest.mark.parametrize("form", OF_FILES, ids=name)
def test_a_row_that_ends_within_a_block_is_refused(form: Format) -> None:
    with pytest.raises(ValueError, match=f"K in multiples of {form.block_codes}, but K is 100"):
        form.num_bytes(32, 100)
    with pytest.raises(ValueError, match=f"K must be a multiple of {form.block_codes}"):
        form.pack(torch.zeros(32, form.row_block_bytes + 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="packs u8"):
        form.pack(torch.zeros(32, 256))


def test_floats_are_what_is_rounded() -> None:
    with pytest.raises(ValueError, match="packs floats"):
        FORMATS["int4"].pack(torch.zeros(32, 256, dtype=torch.uint8))


def test_sums_that_could_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="K up to 131072, but K is 131073"):
        FORMATS["int8"].num_bytes(32, 131073)


def test_another_size_than_the_format_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`q8_0` \[32, 64\] takes 2176 bytes, but 2175 are given"):
        FORMATS["q8_0"].unpack(torch.zeros(2175, dtype=torch.uint8), 32, 64)
    with pytest.raises(ValueError, match="half the rows gate the other half, but there are 33"):
        FORMATS["int4"].pack(torch.zeros(33, 32), gated=True)
