"""Where values lie, for steps of any size: a region, offsets that scale with the step, sizes and strides in symbols.

View ops are applied to places as they are to tensors, so that a program is walked once and not once for each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Literal, cast

from tskernels.dtypes import size_bytes

Symbol = Literal["T", "S", "P"]
Extent = int | tuple[Symbol, int]
"""A number, or the tokens T, sequences S or table columns P of the step divided by one."""
Region = Literal["fixed", "T", "S"]


def extent(given: int | str) -> Extent:
    """`T`, `T/4` or a number, as a program says it."""
    if isinstance(given, int):
        return given
    symbol, _, divisor = given.partition("/")
    return cast(Symbol, {"S.pages": "P"}.get(symbol, symbol)), int(divisor or 1)


def value(given: Extent, sizes: Mapping[str, int]) -> int:
    return given if isinstance(given, int) else sizes[given[0]] // given[1]


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of a step. In a region `T` or `S` its storage begins at `address` bytes a row and takes `row_bytes` of each; `offset` are
    bytes from there. A fixed one is at `address`, in memory that `buffer` keeps alive; tensor: the name of a weight."""

    region: Region
    address: int
    row_bytes: int
    offset: int
    dtype: str
    shape: tuple[Extent, ...]
    strides: tuple[Extent, ...]
    buffer: object = None
    tensor: str = ""

    def dim(self) -> int:
        return len(self.shape)

    def narrow(self, dim: int, start: int, length: int) -> Place:
        """As torch's."""
        stride = self.strides[dim]
        assert isinstance(stride, int), "a view of the table columns"
        shape = list(self.shape)
        shape[dim] = length
        return replace(self, offset=self.offset + start * stride * size_bytes(self.dtype), shape=tuple(shape))

    def view(self, *shape: Extent) -> Place:
        """As torch's: dimensions split or joined where their strides allow it."""
        old, new = list(zip(self.shape, self.strides, strict=True)), list(shape)
        kept: list[tuple[Extent, Extent]] = []
        while old and new and old[0][0] == new[0]:
            kept.append(old.pop(0))
            new.pop(0)
        ending: list[tuple[Extent, Extent]] = []
        while old and new and old[-1][0] == new[-1]:
            ending.insert(0, old.pop())
            new.pop()
        if (old or new) and not _is_run(old):
            raise ValueError(f"{list(self.shape)} with strides {list(self.strides)} has no view as {list(shape)}")
        stride = old[-1][1] if old else 1
        made: list[tuple[Extent, Extent]] = []
        for size in reversed(new):
            made.insert(0, (size, stride))
            assert isinstance(size, int)
            assert isinstance(stride, int)
            stride *= size
        if prod(cast(int, n) for n, _ in old) != prod(cast(int, n) for n in new):
            raise ValueError(f"{list(self.shape)} has another number of elements than {list(shape)}")
        parts = (*kept, *made, *ending)
        return replace(self, shape=tuple(n for n, _ in parts), strides=tuple(s for _, s in parts))

    @property
    def operand(self) -> tuple[str, int, int, int, str, Sequence[Extent], Sequence[Extent]]:
        """What `tskernels._cpu` is told of it."""
        return self.region, self.address, self.row_bytes, self.offset, self.dtype, self.shape, self.strides


def _is_run(dimensions: Sequence[tuple[Extent, Extent]]) -> bool:
    """Whether the dimensions, which are numbers, are one evenly spaced run of elements."""
    if not all(isinstance(n, int) and isinstance(s, int) for n, s in dimensions):
        return False
    return all(outer[1] == cast(int, inner[0]) * cast(int, inner[1]) for outer, inner in pairwise(dimensions))


def contiguous(shape: Sequence[Extent]) -> tuple[Extent, ...]:
    """Strides of elements without gaps; only the first dimension, or the last of two, may be a symbol."""
    strides: list[Extent] = []
    stride: Extent = 1
    for size in reversed(shape):
        strides.insert(0, stride)
        stride = size if stride == 1 else cast(int, stride) * size if isinstance(size, int) else stride
    return tuple(strides)


def fixed(address: int, dtype: str, shape: Sequence[Extent], buffer: object, tensor: str = "") -> Place:
    """A place that no step moves."""
    return Place("fixed", address, 0, 0, dtype, tuple(shape), contiguous(shape), buffer, tensor)
