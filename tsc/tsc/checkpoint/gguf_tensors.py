"""The tensors of a GGUF under their Hugging Face names, with the converter's changes undone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.architectures import Architecture
from tsc.checkpoint.checkpoint import TensorInfo
from tsc.checkpoint.errors import DAMAGED_GGUF, UNKNOWN_TENSOR, UNKNOWN_TENSOR_TYPE, failure
from tsc.checkpoint.gguf_config import architecture_of
from tsc.checkpoint.gguf_header import GgufHeader, GgufTensor
from tsc.checkpoint.gguf_recipes import Recipe, expert, in_pairs, made, same
from tsc.checkpoint.mapped import map_range
from tskernels.layouts import OF_GGUF, STACKED

if TYPE_CHECKING:
    import torch

_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I32": "i32", "I64": "i64"}
_TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i32": "int32", "i64": "int64"}
_CHUNK_BYTES = 1 << 24  # of f32 dequantized at a time: gguf.dequantize needs several times its result

_MODEL = ("model.embed_tokens", "model.norm", "lm_head")
"""The modules beside the layers. gguf's name map goes from these, and from many other spellings, to GGUF's names."""
_NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # read into rope_scaling


class GgufWeights:
    """Reads one tensor at a time. CompileError at once for a truncated file, an unknown tensor or block type."""

    def __init__(self, header: GgufHeader, config: dict[str, Any]) -> None:
        self._header, self._config = header, config
        self._architecture: Architecture = architecture_of(header)
        self._check_sizes()
        self._recipes = dict(self._found())
        self._require_all_named()

    @cached_property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {name: TensorInfo(self._dtype(recipe), recipe.shape(self._config)) for name, recipe in self._recipes.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor in torch memory of its own."""
        recipe = self._recipes[name]
        if self._kind(recipe) is not None:
            rows = recipe.make([self._bytes(part) for part in recipe.parts], self._config)
            result = self._values(recipe.parts[0], rows, recipe.made_shape(self._config))
        else:
            result = recipe.make([self._values(p, self._bytes(p), p.shape).float() for p in recipe.parts], self._config)
        result = (result.transpose(1, 2) if recipe.is_turned else result).contiguous()
        offset = self._architecture.norm_offset
        stored = recipe.parts[0].name
        if offset and stored.endswith("norm.weight") and not any(plain in stored for plain in self._architecture.plain_norms):
            result = (result.float() - offset).to(result.dtype)
        return result

    def formats(self) -> dict[str, str]:
        """The matrices, and the stacks of matrices by columns, whose blocks `tskernels.quantized` knows."""
        kinds = {name: (self._kind(recipe) or "").lower() for name, recipe in self._recipes.items()}
        known = {name: STACKED if recipe.is_turned else OF_GGUF for name, recipe in self._recipes.items()}
        return {n: kind for n, kind in kinds.items() if kind in known[n] and (known[n] is STACKED or len(self.infos[n].shape) == 2)}

    def block_dimension(self, name: str) -> int:
        return 1 if self._recipes[name].is_turned else -1

    def blocks(self, name: str) -> torch.Tensor:
        """One of `formats`, in torch memory of its own."""
        recipe = self._recipes[name]
        return recipe.make([self._bytes(part) for part in recipe.parts], self._config).clone()

    def _kind(self, recipe: Recipe) -> str | None:
        """The type of all rows, where the recipe is by rows and they have one."""
        kinds = {self._type_name(part) for part in recipe.parts}
        return kinds.pop() if recipe.by_rows and len(kinds) == 1 else None

    def _dtype(self, recipe: Recipe) -> str:
        return _PLAIN.get(self._kind(recipe) or "", "f32")

    def _bytes(self, part: GgufTensor) -> torch.Tensor:
        """A tensor's bytes u8 [..., of a row]; of a plain vector each number is a row."""
        import torch

        size = self._size(part)
        mapping, start = map_range(self._header.path, part.offset, size)
        is_plain_vector = len(part.shape) == 1 and self._type_name(part) in _PLAIN
        stored = torch.frombuffer(mapping, dtype=torch.uint8, count=size, offset=start) if size else torch.empty(0, dtype=torch.uint8)
        return stored.reshape(*(part.shape if is_plain_vector else part.shape[:-1]), -1)

    def _values(self, part: GgufTensor, stored: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The numbers of bytes that are of a part's type."""
        import gguf
        import torch

        if (plain := _PLAIN.get(self._type_name(part))) is not None:
            return stored.clone(memory_format=torch.contiguous_format).view(getattr(torch, _TORCH[plain])).reshape(*shape)
        rows = stored.reshape(math.prod(shape[:-1]), -1)
        result = torch.empty((rows.shape[0], shape[-1]), dtype=torch.float32)
        step = max(1, _CHUNK_BYTES // (4 * shape[-1]))
        for start in range(0, rows.shape[0], step):
            values = gguf.dequantize(rows[start : start + step].numpy(), gguf.GGMLQuantizationType(part.type))
            result[start : start + step] = torch.from_numpy(values)
        return result.reshape(*shape)

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

    def _require_all_named(self) -> None:
        named = {part.name for recipe in self._recipes.values() for part in recipe.parts}
        for name in self._header.tensors:
            if name not in named and name not in _NOT_WEIGHTS:
                what = f"has a tensor `{name}` that architecture `{self._header.architecture}` is not known to have"
                raise failure(UNKNOWN_TENSOR, self._header.path, what)

    def _found(self) -> Iterator[tuple[str, Recipe]]:
        """What the file has, by the names of Hugging Face."""
        import gguf

        tensors, row = self._header.tensors, self._architecture
        layers = sorted({int(words[1]) for n in tensors if (words := n.split("."))[0] == "blk" and words[1].isdigit()})
        known_layers = [i for i in layers if i < self._config["num_hidden_layers"] + (self._config.get("num_nextn_predict_layers") or 0)]
        architecture = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self._header.architecture)
        known = gguf.get_tensor_name_map(architecture, 1 + max(known_layers, default=-1))
        for module in (*_MODEL, *(f"model.layers.{i}.{n}" for i in known_layers for n in row.modules)):
            stored = known.get_name(module.replace(".#", ""))
            for suffix in ("weight", "bias"):
                if (part := tensors.get(f"{stored}.{suffix}")) is not None:
                    yield from self._of_module(f"{module}.{suffix}", part)
        for i in known_layers:
            for name, own in row.tensors.items():
                if (part := tensors.get(f"blk.{i}.{own}")) is not None:
                    yield f"model.layers.{i}.{name}", same(part)
            for name, (how, of) in row.made.items():
                parts = tuple(tensors[stored] for own in of if (stored := f"blk.{i}.{own}") in tensors)
                if len(parts) == len(of):
                    yield f"model.layers.{i}.{name}", made(how, parts)

    def _of_module(self, name: str, part: GgufTensor) -> Iterator[tuple[str, Recipe]]:
        if "#" in name:
            for index in range(part.shape[0]):
                yield name.replace("#", str(index)), expert(part, index)
        elif self._architecture.permuted and ".q_proj." in name:
            yield name, in_pairs(part, self._config["num_attention_heads"])
        elif self._architecture.permuted and ".k_proj." in name:
            yield name, in_pairs(part, self._config["num_key_value_heads"])
        else:
            yield name, same(part)
