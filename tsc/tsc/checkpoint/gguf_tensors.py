"""The tensors of a GGUF under their Hugging Face names, with the converter's changes undone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.architectures import ARCHITECTURES
from tsc.checkpoint.checkpoint import TensorInfo
from tsc.checkpoint.errors import DAMAGED_GGUF, UNKNOWN_TENSOR, UNKNOWN_TENSOR_TYPE, failure
from tsc.checkpoint.gguf_header import GgufHeader, GgufTensor
from tsc.checkpoint.mapped import map_range
from tskernels.layouts import OF_GGUF

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I32": "i32", "I64": "i64"}
_TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i32": "int32", "i64": "int64"}
_CHUNK_BYTES = 1 << 24  # of f32 dequantized at a time: gguf.dequantize needs several times its result

# The modules of Hugging Face's decoders. gguf's name map goes from these, and from many other spellings, to GGUF's names.
_MODEL = ("model.embed_tokens", "model.norm", "lm_head")
_LAYER = (
    *(f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{n}" for n in ("gate_proj", "up_proj", "down_proj")),
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_NOT_WEIGHTS = ("rope_freqs.weight",)  # read into rope_scaling


class GgufWeights:
    """Reads one tensor at a time. CompileError at once for a truncated file, an unknown tensor or block type."""

    def __init__(self, header: GgufHeader, config: dict[str, Any]) -> None:
        self._header, self._config = header, config
        self._architecture = ARCHITECTURES[header.architecture]
        self._check_sizes()
        self._rows = self._by_name()

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(_PLAIN.get(self._type_name(row), "f32"), row.shape) for name, row in self._rows.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor in torch memory of its own."""
        import torch

        row = self._rows[name]
        blocks = self._ordered_blocks(row)
        if (plain := _PLAIN.get(self._type_name(row))) is not None:
            result = torch.from_numpy(blocks.copy()).view(getattr(torch, _TORCH[plain])).reshape(row.shape)
        else:
            result = self._dequantized(row, blocks)
        if self._architecture.norm_offset and row.name.endswith("norm.weight"):
            result = (result.float() - self._architecture.norm_offset).to(result.dtype)
        return result

    def formats(self) -> dict[str, str]:
        """The matrices whose blocks `tskernels.quantized` knows."""
        types = {name: self._type_name(row).lower() for name, row in self._rows.items() if len(row.shape) == 2}
        return {name: kind for name, kind in types.items() if kind in OF_GGUF}

    def blocks(self, name: str) -> torch.Tensor:
        """One of `formats`, in torch memory of its own."""
        import torch

        return torch.from_numpy(self._ordered_blocks(self._rows[name]).copy())

    def _ordered_blocks(self, row: GgufTensor) -> NDArray[Any]:
        """Rows in the order of Hugging Face. They hold whole blocks, so they change places before they are dequantized, at a fraction of
        the bytes."""
        blocks = self._blocks(row)
        if self._architecture.permuted and (heads := self._permuted_heads(row.name)):
            pairs = blocks.reshape(heads, blocks.shape[0] // heads // 2, 2, -1)
            blocks = pairs.swapaxes(1, 2).reshape(blocks.shape)
        return blocks

    def _blocks(self, row: GgufTensor) -> NDArray[Any]:
        """The bytes of a tensor, one row of the last dimension a row."""
        import numpy as np

        size = self._size(row)
        mapping, start = map_range(self._header.path, row.offset, size)
        rows = math.prod(row.shape[:-1]) if len(row.shape) > 1 else row.shape[0]
        return np.frombuffer(mapping, dtype=np.uint8, count=size, offset=start).reshape(rows, -1)

    def _dequantized(self, row: GgufTensor, blocks: NDArray[Any]) -> torch.Tensor:
        import gguf
        import torch

        # A single row of blocks (a quantized vector) comes as many rows of one element each: put it back together.
        blocks = blocks.reshape(math.prod(row.shape[:-1]), -1)
        result = torch.empty((blocks.shape[0], row.shape[-1]), dtype=torch.float32)
        step = max(1, _CHUNK_BYTES // (4 * row.shape[-1]))
        for start in range(0, blocks.shape[0], step):
            part = gguf.dequantize(blocks[start : start + step], gguf.GGMLQuantizationType(row.type))
            result[start : start + step] = torch.from_numpy(part)
        return result.reshape(row.shape)

    def _permuted_heads(self, name: str) -> int:
        if ".attn_q." in name:
            return int(self._config["num_attention_heads"])
        return int(self._config["num_key_value_heads"]) if ".attn_k." in name else 0

    def _type_name(self, row: GgufTensor) -> str:
        import gguf

        return str(gguf.GGMLQuantizationType(row.type).name)

    def _size(self, row: GgufTensor) -> int:
        import gguf

        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(row.type)]
        return math.prod(row.shape) // int(block) * int(block_bytes)

    def _check_sizes(self) -> None:
        import gguf
        from gguf.quants import _type_traits

        path, known = self._header.path, {int(t) for t in gguf.GGMLQuantizationType}
        for row in self._header.tensors.values():
            if row.type not in known or (self._type_name(row) not in _PLAIN and gguf.GGMLQuantizationType(row.type) not in _type_traits):
                kind = gguf.GGMLQuantizationType(row.type).name if row.type in known else f"the unknown type {row.type}"
                what = f"stores `{row.name}` as {kind}, which the installed gguf cannot dequantize"
                raise failure(UNKNOWN_TENSOR_TYPE, path, what, "update the package gguf, or quantize the model to another type")
        expected = max((row.offset + self._size(row) for row in self._header.tensors.values()), default=0)
        if expected > self._header.size:
            what = f"is truncated: {expected} bytes expected, {self._header.size} found"
            raise failure(DAMAGED_GGUF, path, what, "download it again")

    def _by_name(self) -> dict[str, GgufTensor]:
        names = dict(self._names())
        rows = {}
        for row in self._header.tensors.values():
            base, _, suffix = row.name.rpartition(".")
            if row.name in _NOT_WEIGHTS:
                continue
            if base not in names:
                what = f"has a tensor `{row.name}` that architecture `{self._header.architecture}` is not known to have"
                raise failure(UNKNOWN_TENSOR, self._header.path, what)
            rows[f"{names[base]}.{suffix}"] = row
        return rows

    def _names(self) -> Iterator[tuple[str, str]]:
        import gguf

        stored_layers = [int(parts[1]) for n in self._header.tensors if (parts := n.split("."))[0] == "blk" and parts[1].isdigit()]
        layers = min(int(self._config["num_hidden_layers"]), 1 + max(stored_layers, default=-1))
        architecture = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self._header.architecture)
        known = gguf.get_tensor_name_map(architecture, layers)
        for name in (*_MODEL, *(f"model.layers.{i}.{n}" for i in range(layers) for n in _LAYER)):
            if (stored := known.get_name(name)) is not None:
                yield stored, name
