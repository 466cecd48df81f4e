"""Directories that quantizers wrote, from the file to logits: dequantized they are the model that their weights come to, to the bit, on any
number of ranks; as they are they differ from it by no more than activations of 8 bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.quantized_writers import BY_NAME, Quantizer, write
from tests.models.running import compiled, run
from tests.models.test_real_quantized import ROUNDING
from tests.models.tiny import Case, TinyModels, prompt
from torch import Tensor
from transformers import LlamaConfig, Qwen3MoeConfig

from tsc.checkpoint import open_checkpoint
from tskernels.layouts import layout
from tskernels.simd import is_available
from tsrun.artifact import open_artifact

needs_simd = pytest.mark.skipif(not is_available(), reason="the C++ kernels are not built, or not for this processor")
_WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32, "num_hidden_layers": 2}
LLAMA = Case("llama_wide", LlamaConfig, _WIDE)
MIXTURE = Case("qwen3_moe_wide", Qwen3MoeConfig, _WIDE | {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2})
PRODUCTS = 2 * 4
"""Of both layers, one after the other: q with k and v, o, gate with up, down."""
KEPT = [name for name, quantizer in BY_NAME.items() if quantizer.format]
Pair = tuple[Path, Path]
"""A quantized checkpoint, and one of what its weights come to."""


def calm(source: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint with such queries and keys that attention looks at more than one token: else a small difference would
    turn it to another."""
    found = load_file(source / "model.safetensors")
    return {name: tensor * (0.2 if "q_proj" in name or "k_proj" in name else 1) for name, tensor in found.items()}


@pytest.fixture
def pair(tiny: TinyModels, tmp_path: Path) -> Callable[[Case, Quantizer], Pair]:
    def make(case: Case, quantizer: Quantizer) -> Pair:
        source = tiny.checkpoint(case)
        values = write(tmp_path / "quantized", source, quantizer, calm(source), keep=("layers.1.mlp.down_proj",))
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "config.json").write_text((source / "config.json").read_text())
        save_file({name: value.contiguous() for name, value in values.items()}, tmp_path / "plain" / "model.safetensors")
        return tmp_path / "quantized", tmp_path / "plain"

    return make


def weights(path: Path) -> Mapping[str, Any]:
    """The digests of each rank's."""
    files = json.loads((path / "manifest.json").read_text())["files"]
    return {name: file for name, file in files.items() if name.startswith("weights/")}


@pytest.mark.parametrize("case", [LLAMA, MIXTURE], ids=str)
@pytest.mark.parametrize("name", ["fp8_128x128_float32", "awq_32", "gptq4_32_asym_desc_act", "w4a16_asym", "w8a8"])
def test_dequantized_it_is_the_model_that_its_weights_come_to(
    name: str, case: Case, pair: Callable[[Case, Quantizer], Pair], tmp_path: Path
) -> None:
    quantized, plain = pair(case, BY_NAME[name])
    for tp in (1, 2):
        for dtype in ("f32", "bf16"):
            one = compiled(quantized, tmp_path / f"quantized-{tp}-{dtype}.tsa", tp=tp, dtype=dtype)
            other = compiled(plain, tmp_path / f"plain-{tp}-{dtype}.tsa", tp=tp, dtype=dtype)
            assert weights(one) == weights(other)
            assert len(weights(one)) == tp
    (found,), (wanted,) = (run(tmp_path / f"{kind}-1-f32.tsa", [prompt(20)], 8) for kind in ("quantized", "plain"))
    assert found.tokens == wanted.tokens
    assert all(torch.equal(found.logits[position], wanted.logits[position]) for position in wanted.logits)


def rows(path: Path, ids: list[int]) -> Tensor:
    """The logits of a prompt [N, V]."""
    (trace,) = run(path, [ids], 1)
    return trace.logits[len(ids) - 1]


@needs_simd
@pytest.mark.parametrize("name", KEPT)
def test_as_it_is_it_differs_by_activations_of_8_bits(name: str, pair: Callable[[Case, Quantizer], Pair], tmp_path: Path) -> None:
    quantizer = BY_NAME[name]
    quantized, plain = pair(LLAMA, quantizer)
    path = compiled(quantized, tmp_path / "as_is.tsa", quantize="auto")
    checkpoint = open_checkpoint(quantized)
    kept = sum(math.prod(checkpoint.tensors[tensor].shape) for tensor in checkpoint.formats)
    assert open_artifact(path).manifest.quantization == {quantizer.format: kept}
    stored = load_file(path / "weights" / "rank-00000.safetensors")
    o_proj = "model.layers.0.self_attn.o_proj.weight"
    unpack = layout(quantizer.format or "").unpack
    assert unpack is not None
    assert torch.equal(unpack(stored[o_proj], (128, 128)), load_file(plain / "model.safetensors")[o_proj])
    _differs_by_rounding(path, compiled(plain, tmp_path / "plain.tsa"), of_rows=quantizer.format == "int8")


def _differs_by_rounding(as_is: Path, dequantized: Path, *, of_rows: bool = False) -> None:
    errors = []
    for seed in range(6):
        ids = prompt(12, seed)
        found, wanted = rows(as_is, ids), rows(dequantized, ids)
        errors.append(float((found - wanted).norm() / (wanted - wanted.mean()).norm()))
    # A scale for all inputs of a row is that of the largest of 128 or 256 of them, where a group has 32.
    bound = ROUNDING * math.sqrt(PRODUCTS) * (math.sqrt(256 / 32) if of_rows else 1)
    print(f"logits differ by {max(errors):.2%} (bound {bound:.2%})")
    assert 0 < math.sqrt(sum(e * e for e in errors) / len(errors)) < bound


@needs_simd
def test_ranks_share_out_dequantized_weights(pair: Callable[[Case, Quantizer], Pair], tmp_path: Path) -> None:
    quantized, plain = pair(LLAMA, BY_NAME["gptq4_128_sym"])
    one = compiled(quantized, tmp_path / "one.tsa", tp=2, quantize="auto")
    assert open_artifact(one).manifest.quantization is None
    assert weights(one) == weights(compiled(plain, tmp_path / "other.tsa", tp=2))


@needs_simd
def test_rounding_is_of_what_the_codes_stand_for(pair: Callable[[Case, Quantizer], Pair], tmp_path: Path) -> None:
    quantized, plain = pair(LLAMA, BY_NAME["w8a8"])
    one = compiled(quantized, tmp_path / "one.tsa", quantize="int8")
    assert weights(one) == weights(compiled(plain, tmp_path / "other.tsa", quantize="int8"))


# ---- blocks of a GGUF that its package does not write


_IQ4 = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), dtype=np.float32)


def iq4_nl_blocks(w: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[O, K] to u8 [O, K / 32 * 18]: an f16 scale, then each code's place in the table, the first 16 in the lower halves of bytes."""
    groups = w.reshape(w.shape[0], -1, 32)
    scale = (np.abs(groups).max(-1, keepdims=True) / 127).astype(np.float16)
    places = np.abs(groups[..., None] / scale[..., None].astype(np.float32) - _IQ4).argmin(-1).astype(np.uint8)
    return np.concatenate([scale.view(np.uint8), places[..., :16] | places[..., 16:] << 4], -1).reshape(w.shape[0], -1)


@needs_simd
@pytest.mark.parametrize("kind", ["IQ4_NL", "Q5_1"])
def test_a_gguf_of_other_blocks_runs_as_it_is(kind: str, tiny: TinyModels, tmp_path: Path) -> None:
    type_ = gguf.GGMLQuantizationType[kind]
    source = tiny.checkpoint(LLAMA)
    config = json.loads((source / "config.json").read_text())
    writer, names = gguf.GGUFWriter(tmp_path / "model.gguf", "llama"), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for key, value in {
        "context_length": config["max_position_embeddings"],
        "embedding_length": 128,
        "block_count": 2,
        "feed_forward_length": 256,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 32,
        "attention.value_length": 32,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32("llama.rope.freq_base", config["rope_parameters"]["rope_theta"])
    for name, tensor in calm(source).items():
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:  # pairs of rows, as llama.cpp has them
            heads = values.shape[0] // 32
            values = np.ascontiguousarray(values.reshape(heads, 2, 16, -1).swapaxes(1, 2).reshape(values.shape))
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        elif kind == "IQ4_NL":
            writer.add_tensor(stored, iq4_nl_blocks(values), raw_dtype=type_)
        else:
            writer.add_tensor(stored, gguf.quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    as_is = compiled(tmp_path / "model.gguf", tmp_path / "as_is.tsa", quantize="auto")
    assert set(open_artifact(as_is).manifest.quantization or {}) == {kind.lower()}
    _differs_by_rounding(as_is, compiled(tmp_path / "model.gguf", tmp_path / "dequantized.tsa"))
