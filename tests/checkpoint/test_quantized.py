"""Quantized directories: what is read is what the format's public library makes of it, and what is kept are the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoint.quantized_writers import BY_NAME, QUANTIZERS, Quantizer, gptq, write
from torch import Tensor

from tsc.checkpoint import TensorInfo, open_checkpoint
from tsc.diagnostics import CompileError
from tskernels.layouts import layout

SHAPES = {"up_proj": (96, 128), "down_proj": (64, 640), "plain_proj": (32, 128)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a configuration alone."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    return tmp_path / "source"


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    found = {f"layer.{name}.weight": torch.randn(shape) * 0.1 for name, shape in SHAPES.items()}
    return found | {"norm.weight": torch.randn(8), "layer.up_proj.bias": torch.randn(96)}


def refusal(directory: Path, config: Mapping[str, Any], tensors: dict[str, Tensor] | None = None) -> str:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"quantization_config": config}))
    save_file(tensors or {"a": torch.zeros(1)}, directory / "model.safetensors")
    with pytest.raises(CompileError) as error:
        open_checkpoint(directory)
    [diagnostic] = error.value.diagnostics
    assert diagnostic.code == "TS0712"
    assert diagnostic.fixes
    line = diagnostic.headline()
    assert "\n" not in line
    assert str(directory) in line
    return line


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_a_weight_is_what_the_public_library_dequantizes(
    quantizer: Quantizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = write(tmp_path / "quantized", source, quantizer, state(), keep=("plain_proj",))
    checkpoint = open_checkpoint(tmp_path / "quantized")
    assert set(checkpoint.tensors) == set(values)
    for name, value in values.items():
        assert checkpoint.tensors[name] == TensorInfo("f32", tuple(value.shape))
        assert torch.equal(checkpoint.read(name), value), name
        error = float((value - state()[name]).norm() / state()[name].norm())
        assert error < (0.6 if quantizer.name.startswith("gptq2") else 0.2), "what was written is about what was given"
    # In pieces of some rows it is the same.
    monkeypatch.setattr("tsc.checkpoint.encoded._CHUNK", 32 * 640)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in values.items())


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_what_a_layout_takes_as_it_is_stays_the_same_numbers(
    quantizer: Quantizer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "quantized", source, quantizer, state(), keep=("plain_proj",))
    checkpoint = open_checkpoint(tmp_path / "quantized")
    names = [f"layer.{name}.weight" for name in ("up_proj", "down_proj")]
    assert checkpoint.formats == (dict.fromkeys(names, quantizer.format) if quantizer.format else {})
    for name in checkpoint.tensors:
        if name not in checkpoint.formats:
            with pytest.raises(CompileError, match="stores no blocks"):
                checkpoint.blocks(name)
            continue
        stored, shape = layout(checkpoint.formats[name]), checkpoint.tensors[name].shape
        assert stored.takes("bf16", shape)
        assert stored.unpack is not None
        packed = stored.pack(checkpoint.blocks(name))
        assert torch.equal(stored.unpack(packed, shape), checkpoint.read(name))
        with monkeypatch.context() as pieces:
            pieces.setattr("tsc.checkpoint.encoded._CHUNK", 32 * 640)
            assert torch.equal(stored.pack(checkpoint.blocks(name)), packed)


def test_groups_that_no_block_divides_are_dequantized(source: Path, tmp_path: Path) -> None:
    weight = {"a.q_proj.weight": torch.randn(32, 48)}
    values = write(tmp_path / "quantized", source, gptq(4, 16), weight)
    checkpoint = open_checkpoint(tmp_path / "quantized")
    assert checkpoint.formats == {}
    assert torch.equal(checkpoint.read("a.q_proj.weight"), values["a.q_proj.weight"])


def test_a_last_group_may_be_short(source: Path, tmp_path: Path) -> None:
    values = write(tmp_path / "quantized", source, gptq(4, 32, symmetric=False), {"a.q_proj.weight": torch.randn(32, 80)})
    checkpoint = open_checkpoint(tmp_path / "quantized")
    assert checkpoint.formats == {}
    assert torch.equal(checkpoint.read("a.q_proj.weight"), values["a.q_proj.weight"])


def test_modules_of_other_bits_than_most_say_so_themselves(source: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = {"a.q_proj.weight": torch.randn(32, 128)}
    eight = gptq(8, 32)
    values = write(tmp_path / "quantized", source, Quantizer("mixed", gptq(4, 128).config, eight.encode), weight)
    checkpoint = open_checkpoint(tmp_path / "quantized")
    assert checkpoint.formats == {"a.q_proj.weight": "affine8_32"}
    assert torch.equal(checkpoint.read("a.q_proj.weight"), values["a.q_proj.weight"])


def test_what_rounds_activations_is_left_out(source: Path, tmp_path: Path) -> None:
    quantizer = BY_NAME["w8a8"]
    beside = {"input_scale": torch.ones(1), "k_scale": torch.ones(1), "input_zero_point": torch.zeros(1)}
    write(tmp_path / "quantized", source, Quantizer("static", quantizer.config, quantizer.encode, beside=beside), state())
    assert set(open_checkpoint(tmp_path / "quantized").tensors) == set(state())


def test_only_biases_of_zeros_are_needless(source: Path, tmp_path: Path) -> None:
    biases = {"layer.up_proj.bias": torch.zeros(96), "layer.down_proj.bias": torch.ones(64), "norm.bias": torch.zeros(8)}
    write(tmp_path / "quantized", source, BY_NAME["gptq4_128_sym"], state() | biases)
    checkpoint = open_checkpoint(tmp_path / "quantized")
    assert [name for name in checkpoint.tensors if checkpoint.is_needless(name)] == ["layer.up_proj.bias"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "is quantized by `bitsandbytes`, which is not read"),
        ({"quant_method": "gtpq"}, "is quantized by `gtpq`, which is not read; did you mean `gptq`"),
        ({"bits": 4}, "does not say by which method"),
        ({"quant_method": "gptq", "bits": 3}, "to 3 bits; 2, 4 and 8 are read"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "in the format `marlin`"),
        ({"quant_method": "awq", "bits": 3}, "to 3 bits; 4 are read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "in the packing `gemv`"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "compressed as `nvfp4-pack-quantized`"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "`sparse-24-bitmask`"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {}}}}, "rotates activations"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "refused", config)


@pytest.mark.parametrize("name", ["awq_32", "gptq4_64_asym", "w4a16", "w8a8"])
def test_parts_that_are_missing_or_of_another_shape_are_named(name: str, tmp_path: Path) -> None:
    quantizer = BY_NAME[name]
    stored = {f"m.{part}": value.contiguous() for part, value in quantizer.encode(torch.randn(64, 128))[0].items()}
    scales = next(part for part in stored if "scale" in part)
    lacking = {part: value for part, value in stored.items() if part != scales}
    assert f"but no `{scales}`" in refusal(tmp_path / "lacking", quantizer.config, lacking)
    other = stored | {scales: stored[scales].repeat(3, 1)}
    assert "has `m." in refusal(tmp_path / "other", quantizer.config, other)


def test_packed_integers_of_3_bits_are_refused(tmp_path: Path) -> None:
    stored = {
        "m.weight_packed": torch.zeros(8, 12, dtype=torch.int32),
        "m.weight_shape": torch.tensor([8, 128]),
        "m.weight_scale": torch.ones(8, 1),
    }
    assert "read are integers of 2, 4 and 8 bits" in refusal(tmp_path / "three", BY_NAME["w4a16"].config, stored)
