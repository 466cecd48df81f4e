"""A GGUF file as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tsc.checkpoint.checkpoint import Checkpoint, TensorInfo
from tsc.checkpoint.config import config_digest
from tsc.checkpoint.errors import UNKNOWN_TENSOR, failure
from tsc.checkpoint.gguf_config import gguf_config
from tsc.checkpoint.gguf_header import GgufHeader
from tsc.checkpoint.gguf_tensors import GgufWeights
from tsc.checkpoint.tokenizer_gguf import gguf_tokenizer
from tsc.diagnostics import near

if TYPE_CHECKING:
    import torch


class GgufCheckpoint(Checkpoint):
    """Names, configuration, tokenizer and weights as Hugging Face has them. Quantized weights are read as f32, or as they are."""

    def __init__(self, source: Path) -> None:
        self._header = GgufHeader(source)
        config = gguf_config(self._header)
        super().__init__(source, config, config_digest(config))
        self._weights = GgufWeights(self._header, config)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._weights.infos

    def read(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise failure(UNKNOWN_TENSOR, self.source, f"has no tensor `{name}`{near(name, self.tensors)}")
        return self._weights.read(name)

    @cached_property
    def formats(self) -> Mapping[str, str]:
        return self._weights.formats()

    def block_dimension(self, name: str) -> int:
        return self._weights.block_dimension(name) if name in self.formats else super().block_dimension(name)

    def blocks(self, name: str) -> torch.Tensor:
        return self._weights.blocks(name) if name in self.formats else super().blocks(name)

    def tokenizer_files(self) -> dict[str, bytes]:
        return gguf_tokenizer(self._header)
