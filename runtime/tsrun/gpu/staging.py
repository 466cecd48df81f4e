"""What a step takes from the host, in one piece of memory, so that it is one copy: inputs, and what is prepared for kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from tsrun.gpu.device import Device
from tsrun.gpu.launching import Preparing
from tsrun.step import Ints

_ALIGNMENT = 64
"""Numbers; addresses are multiples of 256 bytes."""


@dataclass(frozen=True, slots=True)
class Staged:
    """Of the steps of one shape. memory: u8, on the device; size: numbers in it; tensors: parts of the memory, u8, by the addresses of the
    inputs' arrays; prepared: likewise, by what says what they are."""

    memory: Tensor
    size: int
    tensors: Mapping[int, Tensor]
    prepared: Mapping[str, Tensor]
    _inputs: Sequence[tuple[Ints, int]]
    _made: Sequence[tuple[Preparing, int]]
    _ids: slice
    _vocabulary: int

    @classmethod
    def of(
        cls, device: Device, arrays: Mapping[int, Ints], prepared: Mapping[str, tuple[Preparing, int]], ids: int, vocabulary: int | None
    ) -> Self:
        """arrays: of a step's inputs by address, as long as the step's are; prepared: what makes each, and how long it is at most; ids: the
        address of those; vocabulary: where tokens of the step before begin that the device knows, None where it knows none."""
        begins, at = [], 0
        for size in (*(len(array) for array in arrays.values()), *(size for _, size in prepared.values())):
            begins.append(at)
            at += -(-size // _ALIGNMENT) * _ALIGNMENT
        memory = device.memory(4 * at)
        places = [(begin, *given) for begin, given in zip(begins, arrays.items(), strict=False)]
        made = [(begin, name, *given) for begin, (name, given) in zip(begins[len(places) :], prepared.items(), strict=True)]
        tensors = {address: memory[4 * begin : 4 * (begin + len(array))] for begin, address, array in places}
        parts = {name: memory[4 * begin : 4 * (begin + size)] for begin, name, _, size in made}
        of_ids = next((slice(begin, begin + len(array)) for begin, address, array in places if address == ids), slice(0, 0))
        copied = [(array, begin) for begin, _, array in places]
        return cls(memory, at, tensors, parts, copied, [(make, begin) for begin, _, make, _ in made], of_ids, vocabulary or 0)

    def fill(self, host: Ints, spans: list[tuple[int, int]], lengths: list[int]) -> None:
        """Write a step's into memory of the host, which then has what the device is to have. spans, lengths: of its sequences."""
        for array, begin in self._inputs:
            host[begin : begin + len(array)] = array
        ids = host[self._ids]
        unknown = ids < 0
        if unknown.any():
            ids[unknown] = self._vocabulary + ~ids[unknown]
        for make, begin in self._made:
            made = make(spans, lengths)
            host[begin : begin + len(made)] = made
