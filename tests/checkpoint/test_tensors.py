from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from tsc.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from tsc.diagnostics import CompileError
from tskernels.layouts import QUANTIZED, layout

Make = Callable[..., Path]
_Q = gguf.GGMLQuantizationType


def _quantizable() -> list[gguf.GGMLQuantizationType]:
    kinds = []
    for kind in _Q:
        try:
            gguf.quantize(np.zeros((1, 256), dtype=np.float32), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


def _state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _code(error: pytest.ExceptionInfo[CompileError]) -> str:
    [diagnostic] = error.value.diagnostics
    assert "\n" not in diagnostic.headline()
    return diagnostic.code


@pytest.mark.parametrize("shard_size", ["5GB", "500KB"])
def test_a_directory_reads_as_safetensors_does(shard_size: str, make_directory: Make) -> None:
    directory = make_directory("llama", shard_size=shard_size)
    files = sorted(directory.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_size == "500KB")
    expected = {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}
    checkpoint = open_checkpoint(directory)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.tensors[name] == TensorInfo("f32", tuple(tensor.shape))
        assert torch.equal(checkpoint.read(name), tensor)


def test_element_types_are_kept(tmp_path: Path) -> None:
    dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64, "i32": torch.int32, "i64": torch.int64}
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in dtypes.items()} | {"none": torch.empty(0, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.tensors[name].dtype == (name if name in dtypes else "f32")


def test_an_element_type_that_is_not_read_fails_only_when_it_is_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(4, dtype=torch.uint8), "b": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.read("b") == 1
    with pytest.raises(CompileError, match="stores `a` as U8") as error:
        checkpoint.read("a")
    assert _code(error) == "TS0708"


def test_a_tensor_that_was_dropped_leaves_no_mapping_behind(make_directory: Make) -> None:
    checkpoint = open_checkpoint(make_directory("llama"))
    tensor = checkpoint.read("model.embed_tokens.weight")
    assert "model.safetensors" in Path("/proc/self/maps").read_text()
    del tensor
    gc.collect()
    assert "model.safetensors" not in Path("/proc/self/maps").read_text()


def test_changing_a_tensor_changes_no_file(make_directory: Make) -> None:
    checkpoint = open_checkpoint(make_directory("llama"))
    checkpoint.read("model.norm.weight").zero_()
    assert checkpoint.read("model.norm.weight").abs().sum() > 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_gguf_reads_back_as_the_directory_it_was_made_of(family: str, make_directory: Make, make_gguf: Make) -> None:
    directory = open_checkpoint(make_directory(family))
    expected = _state(directory)
    actual = _state(open_checkpoint(make_gguf(family, directory.config, expected)))
    assert set(actual) == set(expected) - ({"lm_head.weight"} if directory.config["tie_word_embeddings"] else set())
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6 if family == "gemma3" else 0)


def test_biases_of_q_and_k_are_put_back_in_order(make_directory: Make, make_gguf: Make) -> None:
    directory = open_checkpoint(make_directory("llama", attention_bias=True))
    expected = {n: torch.randn_like(t) if n.endswith("bias") else t for n, t in _state(directory).items() if "o_proj.bias" not in n}
    checkpoint = open_checkpoint(make_gguf("llama", directory.config, expected))
    assert checkpoint.config["attention_bias"] is True
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name), expected[name]), name


@pytest.mark.parametrize("kind", _quantizable(), ids=lambda kind: str(kind.name))
def test_every_block_type_reads_as_gguf_dequantizes_it(kind: gguf.GGMLQuantizationType, make_directory: Make, make_gguf: Make) -> None:
    directory = open_checkpoint(make_directory("llama"))
    state = _state(directory)
    checkpoint = open_checkpoint(make_gguf("llama", directory.config, state, kind))
    plain = {_Q.F32: ("f32", torch.float32), _Q.F16: ("f16", torch.float16), _Q.BF16: ("bf16", torch.bfloat16)}
    name, dtype = plain.get(kind, ("f32", torch.float32))
    for tensor in checkpoint.tensors:
        actual = checkpoint.read(tensor)
        matrix = actual.ndim > 1
        assert checkpoint.tensors[tensor] == TensorInfo(name if matrix else "f32", tuple(state[tensor].shape))
        assert actual.dtype == (dtype if matrix else torch.float32)
        # Quantization is by blocks within a row, so it does not see the order of rows that the converter changed.
        value = state[tensor].numpy()
        expected = gguf.dequantize(gguf.quantize(value, kind), kind) if matrix else value
        assert torch.equal(actual.float(), torch.from_numpy(expected))
        assert checkpoint.formats.get(tensor) == (kind.name.lower() if matrix and kind.name.lower() in QUANTIZED else None)
        if tensor not in checkpoint.formats:
            with pytest.raises(CompileError, match="stores no blocks"):
                checkpoint.blocks(tensor)
            continue
        # The blocks are in the order of the rows that `read` gives.
        stored = layout(checkpoint.formats[tensor])
        assert stored.unpack is not None
        torch.testing.assert_close(stored.unpack(stored.pack(checkpoint.blocks(tensor)), actual.shape), actual, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kept", [0, 3, 20, 200, -1, -5000])
def test_a_truncated_gguf_is_named_with_its_sizes(kept: int, make_directory: Make, make_gguf: Make) -> None:
    directory = open_checkpoint(make_directory("llama"))
    file = make_gguf("llama", directory.config, _state(directory), _Q.Q8_0)
    data = file.read_bytes()
    file.write_bytes(data[:kept])
    with pytest.raises(CompileError, match=rf"{file.name}: is (truncated|not a GGUF).*\b{len(data[:kept])}\b") as error:
        open_checkpoint(file)
    assert _code(error) == "TS0705"
    if kept < 0:
        assert str(len(data)) in str(error.value)


def test_damaged_headers_are_never_a_traceback(make_directory: Make, make_gguf: Make) -> None:
    directory = make_directory("llama", num_hidden_layers=1)
    checkpoint = open_checkpoint(directory)
    gguf_file = make_gguf("llama", checkpoint.config, _state(checkpoint))
    random = np.random.default_rng(0)
    for file, opened in ((gguf_file, gguf_file), (directory / "model.safetensors", directory)):
        whole = file.read_bytes()
        for _ in range(200):
            data = bytearray(whole)
            for place in random.integers(0, 1500, size=random.integers(1, 5)):
                data[place] = random.choice([0, 1, 127, 255])
            file.write_bytes(data)
            with contextlib.suppress(CompileError):
                open_checkpoint(opened)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"<!DOCTYPE html>" * 10)
    with pytest.raises(CompileError, match="is not a GGUF") as error:
        open_checkpoint(tmp_path / "a.gguf")
    assert _code(error) == "TS0705"


def test_a_tensor_that_the_architecture_lacks_is_refused_by_name(make_directory: Make, make_gguf: Make) -> None:
    config = open_checkpoint(make_directory("llama")).config
    extra = np.zeros(4, dtype=np.float32)
    file = make_gguf("llama", config, {}, prepare=lambda w: w.add_tensor("blk.0.attn_sinks.weight", extra))
    with pytest.raises(CompileError, match=r"blk\.0\.attn_sinks\.weight") as error:
        open_checkpoint(file)
    assert _code(error) == "TS0709"


def test_a_block_type_that_gguf_cannot_dequantize_is_refused_by_name(make_directory: Make, make_gguf: Make) -> None:
    directory = open_checkpoint(make_directory("llama"))
    file = make_gguf("llama", directory.config, _state(directory))
    data = bytearray(file.read_bytes())
    place = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    data[place : place + 4] = int(_Q.Q8_K).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(CompileError, match=r"stores `token_embd\.weight` as Q8_K") as error:
        open_checkpoint(file)
    assert _code(error) == "TS0708"


def test_an_unknown_tensor_offers_the_nearest(make_directory: Make) -> None:
    with pytest.raises(CompileError, match=r"`model\.norm\.weigth`; did you mean `model\.norm\.weight`") as error:
        open_checkpoint(make_directory("llama")).read("model.norm.weigth")
    assert _code(error) == "TS0709"


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_safetensors_is_named_with_its_sizes(kept: int, make_directory: Make) -> None:
    directory = make_directory("llama")
    file = directory / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:kept])
    with pytest.raises(CompileError, match=rf"model\.safetensors: is truncated: \d+ bytes expected, {len(data[:kept])} found") as error:
        open_checkpoint(directory)
    assert _code(error) == "TS0703"
    if kept == -1:
        assert f"{len(data)} bytes expected" in str(error.value)


@pytest.mark.parametrize(
    "header", [b"{not json", b'{"a": {"dtype": "F32"}}', b"[]", b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,4]}}']
)
def test_a_damaged_safetensors_header_is_refused(header: bytes, make_directory: Make) -> None:
    directory = make_directory("llama")
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CompileError, match="is no safetensors file") as error:
        open_checkpoint(directory)
    assert _code(error) == "TS0703"


def test_a_missing_shard_is_named(make_directory: Make) -> None:
    directory = make_directory("llama", shard_size="500KB")
    gone = sorted(directory.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CompileError, match=f"{gone.name}: is missing") as error:
        open_checkpoint(directory)
    assert _code(error) == "TS0704"


def test_a_shard_without_its_tensor_is_named(make_directory: Make) -> None:
    directory = make_directory("llama", shard_size="500KB")
    index = directory / "model.safetensors.index.json"
    places: dict[str, Any] = json.loads(index.read_text())
    places["weight_map"]["extra.weight"] = next(iter(places["weight_map"].values()))
    index.write_text(json.dumps(places))
    with pytest.raises(CompileError, match=r"no tensor `extra\.weight`") as error:
        open_checkpoint(directory)
    assert _code(error) == "TS0704"


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CompileError, match=r"has neither model\.safetensors nor") as error:
        open_checkpoint(tmp_path)
    assert _code(error) == "TS0704"
