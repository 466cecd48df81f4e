"""Checkpoints in the formats that quantizers write, made of floats: packing as the formats' public descriptions have it, in NumPy, or by
compressed-tensors itself. Shares nothing with the reader. What a weight comes to is found by the public library that has the format, where
one does without a GPU: transformers for FP8, compressed-tensors for its own and for AWQ; for GPTQ by what the packing was made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

Stored = dict[str, Tensor]
"""By the last part of their names."""
Encode = Callable[[Tensor], tuple[Stored, Tensor]]
"""A weight [O, K] to what is stored of it, and to the f32 that this comes to."""


@dataclass(frozen=True)
class Quantizer:
    """config: of config.json's `quantization_config`; format: the layout that has the numbers as they are, for K in multiples of 128."""

    name: str
    config: Mapping[str, Any]
    encode: Encode
    format: str | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)  # what each module has that no weight is made of

    def __str__(self) -> str:
        return self.name


def write(
    directory: Path, source: Path, quantizer: Quantizer, state: Mapping[str, Tensor], keep: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """A checkpoint with the matrices of `state` named `..._proj` quantized, but for modules whose names end in one of `keep`. source: has
    the config. Gives the state that it comes to."""
    stored: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        if last == "weight" and tensor.ndim == 2 and module.endswith("_proj") and not module.endswith(keep or ("-",)):
            parts, values[name] = quantizer.encode(tensor.float())
            stored |= {f"{module}.{part}": value.contiguous() for part, value in (parts | dict(quantizer.beside)).items()}
        else:
            stored[name] = values[name] = tensor
    directory.mkdir()
    config = json.loads((source / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": dict(quantizer.config)}))
    save_file({name: value.clone() for name, value in stored.items()}, directory / "model.safetensors")
    return values


# ---- integers in words


def words(codes: NDArray[np.int64], bits: int) -> Tensor:
    """[N, M] to i32 [N, M * bits / 32], the first code lowest."""
    count = 32 // bits
    assert codes.shape[1] % count == 0
    assert codes.min() >= 0
    assert codes.max() < 1 << bits
    packed = np.zeros((codes.shape[0], codes.shape[1] // count), dtype=np.uint32)
    for place in range(count):
        packed |= codes[:, place::count].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(packed.view(np.int32))


def lines(w: Tensor, bits: int, group: NDArray[np.int64], symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scales f16 and zero points [O, G], of inputs of which `group` says where each belongs."""
    found = []
    for g in range(int(group.max()) + 1):
        some = w[:, torch.from_numpy(group == g)]
        low, high = some.amin(1).clamp(max=0), some.amax(1).clamp(min=0)
        if symmetric:
            scale = torch.maximum(-low, high) * 2 / (2**bits - 1)
            zero = torch.full_like(scale, 2.0 ** (bits - 1))
        else:
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale).round().clamp(0, 2**bits - 1)
        found.append((scale.half(), zero))
    return torch.stack([s for s, _ in found], 1), torch.stack([z for _, z in found], 1)


def integers(w: Tensor, bits: int, scale: Tensor, zero: Tensor, group: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
    """Codes [O, K], and what they come to."""
    s, z = scale.float()[:, torch.from_numpy(group)], zero[:, torch.from_numpy(group)]
    codes = ((w / s).round() + z).clamp(0, 2**bits - 1)
    return codes.numpy().astype(np.int64), (codes - z) * s


def _whole(numbers: Tensor) -> NDArray[np.int64]:
    return numbers.numpy().astype(np.int64)


def gptq(
    bits: int, size: int, symmetric: bool = True, ordered: bool = True, version: str = "gptq", format_: str | None = None
) -> Quantizer:
    """size: -1 for all inputs; ordered: whether inputs that are neighbours share a group, which `desc_act` does not have them do."""

    def encode(w: Tensor) -> tuple[Stored, Tensor]:
        inputs = w.shape[1]
        group = np.arange(inputs) // (inputs if size == -1 else size)
        if not ordered:
            group = np.random.default_rng(inputs).permutation(group)
        scale, zero = lines(w, bits, group, symmetric)
        codes, values = integers(w, bits, scale, zero, group)
        less = _whole(zero) - (1 if version == "gptq" else 0)
        stored = {
            "qweight": words(codes, bits).T,
            "qzeros": words((less & (1 << bits) - 1).T, bits),
            "scales": scale.T,
            "g_idx": torch.from_numpy(group.astype(np.int32)),
        }
        return stored, values

    name = f"gptq{bits}_{size}_{'sym' if symmetric else 'asym'}{'' if ordered else '_desc_act'}{'' if version == 'gptq' else '_v2'}"
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": not ordered,
        "sym": symmetric,
        "checkpoint_format": version,
    }
    return Quantizer(name, config, encode, format_)


def awq(size: int, format_: str | None = None) -> Quantizer:
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def in_order(codes: NDArray[np.int64]) -> Tensor:
        return words(codes.reshape(codes.shape[0], -1, 8)[..., order].reshape(codes.shape), 4)

    def encode(w: Tensor) -> tuple[Stored, Tensor]:
        inputs = w.shape[1]
        group = np.arange(inputs) // (inputs if size == -1 else size)
        scale, zero = lines(w, 4, group, symmetric=False)
        codes, values = integers(w, 4, scale, zero, group)
        stored = {"qweight": in_order(codes.T), "qzeros": in_order(_whole(zero.T)), "scales": scale.T}
        converter = AutoAWQConverter(group_size=inputs if size == -1 else size, ignore=())
        public = converter.process({f"m.{part}": value.contiguous() for part, value in stored.items()})
        public = {name.removeprefix("m."): value for name, value in public.items()}
        public["weight_scale"] = public["weight_scale"].float()
        [scheme] = converter._build_quant_config().config_groups.values()
        assert isinstance(scheme, QuantizationScheme)
        found = BaseCompressor.get_value_from_registry("pack-quantized").decompress(public, scheme)["weight"]
        assert torch.equal(found, values), "compressed-tensors reads AWQ as it was written"
        return stored, found

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    return Quantizer(f"awq_{size}", config, encode, format_)


# ---- 8-bit floats


def fp8(block: tuple[int, int] | None = (128, 128), scale_type: torch.dtype = torch.float32) -> Quantizer:
    def encode(w: Tensor) -> tuple[Stored, Tensor]:
        rows, columns = block or w.shape
        grid = torch.empty(-(-w.shape[0] // rows), -(-w.shape[1] // columns))
        codes = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                part = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scale = w[part].abs().max() / 448
                if scale_type == torch.float8_e8m0fnu:
                    scale = 2 ** scale.log2().ceil()
                grid[i, j] = scale.to(scale_type).float()
                codes[part] = (w[part] / grid[i, j]).to(torch.float8_e4m3fn)
        scale = grid.to(scale_type) if block else grid[0, 0].to(scale_type)
        values = _dequantize_fp8_weight(codes, scale, list(block) if block else None, torch.float32)
        return {"weight": codes, "weight_scale_inv": scale}, values

    kind = str(scale_type).rpartition(".")[2]
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block) if block else None}
    name = f"fp8_{'x'.join(map(str, block)) if block else 'tensor'}_{kind}"
    return Quantizer(name, config, encode, beside={} if block else {"activation_scale": torch.tensor(0.5)})


# ---- compressed-tensors


def compressed(
    name: str, form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None, format_: str | None = None, ordered: bool = True
) -> Quantizer:
    args, activations = QuantizationArgs(**weights), None if inputs is None else QuantizationArgs(**inputs)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=activations)

    def encode(w: Tensor) -> tuple[Stored, Tensor]:
        places = torch.from_numpy(np.random.default_rng(w.shape[1]).permutation(w.shape[1]))
        if not ordered:
            w = w[:, places.argsort()]
        runs = _runs(w, args)
        scale, zero = calculate_qparams(runs.amin(-1), runs.amax(-1), args)
        state = {"weight": w, "weight_scale": scale.bfloat16(), "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(state, scheme)
        exact = {**stored, "weight_scale": stored["weight_scale"].float()}
        values: Tensor = compressor.decompress(exact, scheme)["weight"]
        if not ordered:  # as the library wrote it until `actorder` of groups was taken out of it: back in their places
            assert args.group_size is not None
            codes = _unpacked(stored["weight_packed"], args.num_bits)[:, places.numpy()]
            stored = stored | {"weight_packed": words(codes, args.num_bits), "weight_g_idx": (places // args.group_size).int()}
            values = values[:, places]
        return stored, values

    group = {"targets": ["Linear"], "weights": args.model_dump(), "input_activations": activations.model_dump() if activations else None}
    config = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": ["lm_head"]}
    return Quantizer(name, config | {"config_groups": {"group_0": group}}, encode, format_)


def _runs(w: Tensor, args: QuantizationArgs) -> Tensor:
    """The weights of each scale in the last dimension."""
    outputs, inputs = w.shape
    if args.strategy == "block":
        rows, columns = args.block_structure
        return w.view(outputs // rows, rows, inputs // columns, columns).transpose(1, 2).flatten(2)
    return w.view(1, -1) if args.strategy == "tensor" else w.reshape(outputs, -1, args.group_size or inputs)


def _unpacked(packed: Tensor, bits: int) -> NDArray[np.int64]:
    wide = packed.numpy().view(np.uint32)
    codes = [wide >> np.uint32(bits * place) & np.uint32((1 << bits) - 1) for place in range(32 // bits)]
    return np.stack(codes, -1).reshape(packed.shape[0], -1).astype(np.int64)


_TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True}
_E4M3: dict[str, Any] = {"num_bits": 8, "type": "float"}
QUANTIZERS = (
    fp8(),
    fp8(scale_type=torch.bfloat16),
    fp8((64, 32), torch.float8_e8m0fnu),
    fp8(None),
    awq(128, "affine4_128"),
    awq(32, "affine4_32"),
    awq(-1, "affine4_128"),
    gptq(4, 128, format_="affine4_128"),
    gptq(4, 64, symmetric=False, format_="affine4_32"),
    gptq(4, 32, symmetric=False, version="gptq_v2", format_="affine4_32"),
    gptq(4, 32, symmetric=False, ordered=False),
    gptq(8, 32, format_="affine8_32"),
    gptq(8, -1, symmetric=False, format_="affine8_32"),
    gptq(2, 64, symmetric=False),
    compressed("w8a8", "int-quantized", {"num_bits": 8, "strategy": "channel"}, _TOKENS, "int8"),
    compressed("w8a8_tensor", "int-quantized", {"num_bits": 8, "strategy": "tensor"}, _TOKENS, "int8"),
    compressed("w8a8_asym", "int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, _TOKENS, "affine8_32"),
    compressed("w4a16", "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128}, None, "affine4_128"),
    compressed(
        "w4a16_asym", "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, None, "affine4_32"
    ),
    compressed("w4a16_channel", "pack-quantized", {"num_bits": 4, "strategy": "channel"}, None, "affine4_128"),
    compressed("w4a16_g_idx", "pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, None, ordered=False),
    compressed("w8a16", "pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 64}, None, "affine8_32"),
    compressed("fp8_channel", "float-quantized", _E4M3 | {"strategy": "channel"}, _E4M3 | {"strategy": "token", "dynamic": True}),
    compressed("fp8_block", "float-quantized", _E4M3 | {"strategy": "block", "block_structure": [32, 64]}, _E4M3 | {"strategy": "tensor"}),
)
BY_NAME = {quantizer.name: quantizer for quantizer in QUANTIZERS}
