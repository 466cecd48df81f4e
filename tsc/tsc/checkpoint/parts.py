"""A checkpoint in which rows of a tensor are tensors of their own, `qkv_proj.weight[0:4096]`: a model file's `from` names them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.checkpoint import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch

_PART = re.compile(r"(.*)\[(\d+):(\d+)\]")


def part_name(tensor: str, first: int, last: int) -> str:
    """Of the rows from `first` to before `last`."""
    return f"{tensor}[{first}:{last}]"


def in_parts(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The checkpoint with those of the names that are parts; itself where none is."""
    parts: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name in names:
        if (found := _PART.fullmatch(name)) is not None and found[1] in checkpoint.tensors:
            parts[found[1]].add((int(found[2]), int(found[3])))
    return _InParts(checkpoint, parts) if parts else checkpoint


class _InParts(Checkpoint):
    """What is cut is not there whole. Its rows that no part has are a tensor too, so that they are missed like any other."""

    def __init__(self, whole: Checkpoint, parts: Mapping[str, set[tuple[int, int]]]) -> None:
        super().__init__(whole.source, whole.config, whole.digest)
        self._whole = whole
        self._rows: dict[str, tuple[str, int, int]] = {}
        for tensor, rows in parts.items():
            size = whole.tensors[tensor].shape[0]
            kept = [(first, last) for first, last in sorted(rows) if last <= size]
            for first, last in [*kept, *_gaps(kept, size)]:
                self._rows[part_name(tensor, first, last)] = (tensor, first, last)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        cut = {tensor for tensor, _, _ in self._rows.values()}
        found = {name: info for name, info in self._whole.tensors.items() if name not in cut}
        for name, (tensor, first, last) in self._rows.items():
            info = self._whole.tensors[tensor]
            found[name] = TensorInfo(info.dtype, (last - first, *info.shape[1:]))
        return found

    def read(self, name: str) -> torch.Tensor:
        tensor, first, last = self._rows.get(name, (name, 0, None))
        return self._whole.read(tensor)[first:last]

    @cached_property
    def formats(self) -> Mapping[str, str]:
        formats = self._whole.formats
        return dict(formats) | {name: formats[tensor] for name, (tensor, _, _) in self._rows.items() if tensor in formats}

    def blocks(self, name: str) -> torch.Tensor:
        tensor, first, last = self._rows.get(name, (name, 0, None))
        return self._whole.blocks(tensor)[first:last]

    @property
    def left_out(self) -> Mapping[str, int]:
        return self._whole.left_out

    def tokenizer_files(self) -> dict[str, bytes]:
        return self._whole.tokenizer_files()

    def _generation_config(self) -> Mapping[str, Any]:
        return self._whole._generation_config()


def _gaps(rows: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """What lies between those that are given, in rising order."""
    found, next_row = [], 0
    for first, last in [*rows, (size, size)]:
        if first > next_row:
            found.append((next_row, first))
        next_row = max(next_row, last)
    return found
