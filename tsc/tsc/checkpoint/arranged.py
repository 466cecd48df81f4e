"""A checkpoint whose tensors are arranged as a model's weights are: `"gate_up_proj[N, D, (F, 0 of 2)]"` in a model file.

The brackets say how the checkpoint stores the tensor: its dimensions, each of factors from major to minor. Those are the weight's own, in
another order than its type has them, and `i of n`: of n parts that lie beside each other there, the weight is the one of that number.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tsc.checkpoint.checkpoint import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import torch

    from tsc.types import Shape

_NAMED = re.compile(r"([^\[\]]+)\[([^\[\]]*[A-Za-z][^\[\]]*)\]")
_DIMENSION = re.compile(r"\s*(?:\(([^()]*)\)|([^(),]+))\s*(?:,|$)")
_FACTOR = re.compile(r"(?:(\d+)\s+of\s+(\d+)|(\w+))")


@dataclass(frozen=True, slots=True)
class Pick:
    """One of so many parts."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The dimensions of a tensor as it is stored, each of names of factors and picks."""

    dimensions: tuple[tuple[str | Pick, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The factors that are the weight's, in the order in which they are stored."""
        return tuple(f for f in self._factors() if isinstance(f, str))

    def _factors(self) -> Iterator[str | Pick]:
        return itertools.chain.from_iterable(self.dimensions)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the stored tensor."""
        return tuple(math.prod(_size(f, sizes) for f in dimension) for dimension in self.dimensions)

    def arranged(self, stored: torch.Tensor, sizes: Mapping[str, int], order: Sequence[str]) -> torch.Tensor:
        """A view of the picked part, a dimension for each factor, in this order."""
        factors = list(self._factors())
        picks = tuple(f.index if isinstance(f, Pick) else slice(None) for f in factors)
        picked = stored.reshape([_size(f, sizes) for f in factors])[picks]
        return picked.permute([self.names.index(name) for name in order])

    def with_last(self, dimension: int) -> Arrangement:
        """The same with a dimension moved to the end."""
        moved = [d for i, d in enumerate(self.dimensions) if i != dimension % len(self.dimensions)]
        return Arrangement((*moved, self.dimensions[dimension]))

    def siblings(self) -> Iterator[Arrangement]:
        """Every pick of the same parts, itself too."""
        counts = [f.count for f in self._factors() if isinstance(f, Pick)]
        for indices in itertools.product(*map(range, counts)):
            chosen = iter(indices)
            yield Arrangement(tuple(tuple(Pick(next(chosen), f.count) if isinstance(f, Pick) else f for f in d) for d in self.dimensions))

    def __str__(self) -> str:
        texts = [[f if isinstance(f, str) else f"{f.index} of {f.count}" for f in d] for d in self.dimensions]
        return ", ".join(t[0] if len(t) == 1 else f"({', '.join(t)})" for t in texts)


def _size(factor: str | Pick, sizes: Mapping[str, int]) -> int:
    return factor.count if isinstance(factor, Pick) else sizes[factor]


def arrangement_of(name: str) -> tuple[str, Arrangement] | None:
    """The checkpoint's tensor and how it is stored, where a weight's name says that. Raises ValueError where it says it wrongly."""
    found = _NAMED.fullmatch(name)
    if found is None:
        return None
    dimensions, at = [], 0
    while at < len(found[2]):
        one = _DIMENSION.match(found[2], at)
        if one is None:
            raise ValueError(f"`{found[2][at:].strip()}` is no dimension")
        dimensions.append(tuple(_factor(text.strip()) for text in (one[1] or one[2]).split(",")))
        at = one.end()
    return found[1], Arrangement(tuple(dimensions))


def _factor(text: str) -> str | Pick:
    found = _FACTOR.fullmatch(text)
    if found is None:
        raise ValueError(f"`{text}` is no factor, nor `i of n`")
    if found[3] is not None:
        return found[3]
    pick = Pick(int(found[1]), int(found[2]))
    if pick.index >= pick.count:
        raise ValueError(f"`{text}` is none of {pick.count} parts, which are counted from 0")
    return pick


def arranged(checkpoint: Checkpoint, weights: Mapping[str, Shape]) -> Checkpoint:
    """The checkpoint with those of the weights whose names say how they are stored; itself where none does."""
    found: dict[str, dict[Arrangement, Shape]] = defaultdict(dict)
    for name, shape in weights.items():
        if (named := arrangement_of(name)) is not None and named[0] in checkpoint.tensors:
            sizes = {f.name: f.size or 0 for f in shape.factors}
            if named[1].shape(sizes) == checkpoint.tensors[named[0]].shape:  # else it is missed, and the tensor is there
                for each in named[1].siblings():
                    found[named[0]][each] = shape
    return _Arranged(checkpoint, found) if found else checkpoint


class _Arranged(Checkpoint):
    """What is arranged is not there as it is stored. Parts that no weight is are tensors too, so that they are missed like any other."""

    def __init__(self, whole: Checkpoint, found: Mapping[str, Mapping[Arrangement, Shape]]) -> None:
        super().__init__(whole.source, whole.config, whole.digest)
        self._whole = whole
        self._stored = set(found)
        self._parts = {f"{tensor}[{a}]": (tensor, a, shape) for tensor, kinds in found.items() for a, shape in kinds.items()}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        found = {name: info for name, info in self._whole.tensors.items() if name not in self._stored}
        for name, (tensor, _, shape) in self._parts.items():
            dimensions = tuple(math.prod(f.size or 0 for f in d) for d in shape.dimensions())
            found[name] = TensorInfo(self._whole.tensors[tensor].dtype, dimensions)
        return found

    def read(self, name: str) -> torch.Tensor:
        if name not in self._parts:
            return self._whole.read(name)
        tensor, arrangement, shape = self._parts[name]
        sizes = {f.name: f.size or 0 for f in shape.factors}
        return arrangement.arranged(self._whole.read(tensor), sizes, [f.name for f in shape.factors]).reshape(self.tensors[name].shape)

    @cached_property
    def formats(self) -> Mapping[str, str]:
        """Of an arranged tensor where its blocks run along the weight's last dimension."""
        formats = self._whole.formats
        kept = {name: kind for name, kind in formats.items() if name not in self._stored}
        for name, (tensor, arrangement, shape) in self._parts.items():
            along = arrangement.dimensions[self._whole.block_dimension(tensor)] if tensor in formats else None
            if along is not None and along == tuple(f.name for f in shape.dimensions()[-1]) and len(along) == 1:
                kept[name] = formats[tensor]
        return kept

    def block_dimension(self, name: str) -> int:
        return -1 if name in self._parts else self._whole.block_dimension(name)

    def blocks(self, name: str) -> torch.Tensor:
        if name not in self._parts:
            return self._whole.blocks(name)
        tensor, arrangement, shape = self._parts[name]
        stored, last = self._whole.blocks(tensor), shape.factors[-1].name
        sizes = {f.name: f.size or 0 for f in shape.factors} | {last: stored.shape[-1]}
        moved = arrangement.with_last(self._whole.block_dimension(tensor))
        return moved.arranged(stored, sizes, [f.name for f in shape.factors]).reshape(*self.tensors[name].shape[:-1], -1)

    def is_needless(self, name: str) -> bool:
        return self._whole.is_needless(name)

    @property
    def left_out(self) -> Mapping[str, int]:
        return self._whole.left_out

    def tokenizer_files(self) -> dict[str, bytes]:
        return self._whole.tokenizer_files()

    def _generation_config(self) -> Mapping[str, Any]:
        return self._whole._generation_config()
