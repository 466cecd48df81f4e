"""A Hugging Face directory as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.checkpoint import Checkpoint, TensorInfo
from tsc.checkpoint.config import load_config, parse_json, read_file
from tsc.checkpoint.encoded import Encoded
from tsc.checkpoint.errors import MISSING_SHARD, NOT_A_CHECKPOINT, NOT_JSON, UNKNOWN_TENSOR, failure
from tsc.checkpoint.quantized import decoded
from tsc.checkpoint.safetensors_file import StoredTensor, read_header
from tsc.checkpoint.text_part import text_part
from tsc.checkpoint.tokenizer_directory import directory_tokenizer
from tsc.diagnostics import near

if TYPE_CHECKING:
    import torch

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class HuggingFaceCheckpoint(Checkpoint):
    """`config.json`, `model.safetensors` or an index with its shards, and the tokenizer's files."""

    def __init__(self, source: Path) -> None:
        if not source.exists():
            raise failure(NOT_A_CHECKPOINT, source, "there is no such file or directory")
        if not source.is_dir():
            what = "is neither a directory nor a GGUF file"
            raise failure(NOT_A_CHECKPOINT, source, what, "give the directory that from_pretrained would take, or a .gguf file")
        super().__init__(source, *load_config(source))
        stored = _stored_tensors(source)
        part = text_part(self.config, stored)
        self._left_out = part.left_out(stored)
        kept = {name: row for name, row in stored.items() if part.name(name) is not None}
        # Under the names that they are stored with: a method may say something of some of them.
        rows = decoded(source, self.config, kept)
        self._rows = {own: row for name, row in rows.items() if (own := part.name(name)) is not None}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: row.info for name, row in self._rows.items()}

    @property
    def left_out(self) -> Mapping[str, int]:
        return self._left_out

    def read(self, name: str) -> torch.Tensor:
        if name not in self._rows:
            raise failure(UNKNOWN_TENSOR, self.source, f"has no tensor `{name}`{near(name, self._rows)}")
        return self._rows[name].read(name)

    @cached_property
    def formats(self) -> Mapping[str, str]:
        weights = {name: row.format() for name, row in self._rows.items() if isinstance(row, Encoded)}
        return {name: form for name, form in weights.items() if form is not None}

    def block_dimension(self, name: str) -> int:
        row = self._rows.get(name)
        return row.block_dimension if isinstance(row, Encoded) else super().block_dimension(name)

    def blocks(self, name: str) -> torch.Tensor:
        row = self._rows.get(name)
        return row.blocks() if name in self.formats and isinstance(row, Encoded) else super().blocks(name)

    def is_needless(self, name: str) -> bool:
        """Of a quantized module a bias of zeros: AutoGPTQ gives each one, whatever the model has."""
        module, _, last = name.rpartition(".")
        return last == "bias" and isinstance(self._rows.get(f"{module}.weight"), Encoded) and not self.read(name).any()

    def tokenizer_files(self) -> dict[str, bytes]:
        return directory_tokenizer(self.source, self.bos_token_id, next(iter(self.eos_token_ids), None))

    def _generation_config(self) -> Mapping[str, Any]:
        return self._generation

    @cached_property
    def _generation(self) -> Mapping[str, Any]:
        path = self.source / "generation_config.json"
        return parse_json(path, read_file(path)) if path.exists() else {}


def _stored_tensors(source: Path) -> dict[str, StoredTensor]:
    index = source / _INDEX
    if not index.exists():
        if not (source / _SINGLE).exists():
            what = f"has neither {_SINGLE} nor {_INDEX}"
            raise failure(MISSING_SHARD, source, what, "save the model with save_pretrained(..., safe_serialization=True)")
        return read_header(source / _SINGLE)
    places = parse_json(index, read_file(index)).get("weight_map")
    if not isinstance(places, dict):
        raise failure(NOT_JSON, index, "has no `weight_map`")
    shards: dict[str, dict[str, StoredTensor]] = {}
    for shard in dict.fromkeys(map(str, places.values())):
        if not (source / shard).exists():
            raise failure(MISSING_SHARD, source / shard, f"is missing; {_INDEX} names it", "download it again")
        shards[shard] = read_header(source / shard)
    rows = {}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise failure(MISSING_SHARD, source / shard, f"has no tensor `{name}`, which {_INDEX} puts there", "download it again")
        rows[name] = shards[shard][name]
    return rows
