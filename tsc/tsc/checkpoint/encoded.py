"""Weights that several stored tensors make: codes, and what they stand for.

Legend: O outputs and K inputs of a weight; G runs of inputs with a scale and a zero point each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsc.checkpoint.checkpoint import TensorInfo
from tsc.checkpoint.errors import UNKNOWN_QUANTIZATION, failure
from tskernels.layouts import blocks_of_codes

if TYPE_CHECKING:
    import torch

    from tsc.checkpoint.safetensors_file import StoredTensor

_CHUNK = 1 << 22
"""Numbers that are decoded at a time."""


@dataclass(frozen=True, slots=True)
class StoredModule:
    """A module's tensors, by the last part of their names, which follows `mark`."""

    source: Path
    name: str
    tensors: Mapping[str, StoredTensor]
    mark: str = "."

    def named(self, tensor: str) -> str:
        """The whole name of a tensor."""
        return f"{self.name}{self.mark}{tensor}"

    def find(self, tensor: str) -> StoredTensor | None:
        return self.tensors.get(tensor)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Raises CompileError where there is no such tensor."""
        if tensor not in self.tensors:
            there = next(iter(self.tensors))
            raise self.refusal(f"has `{self.named(there)}` but no `{self.named(tensor)}`, which it is read by", "download it again")
        return self.tensors[tensor].shape

    def load(self, tensor: str) -> torch.Tensor:
        return self.tensors[tensor].read(self.named(tensor), encoded=True)

    def require(self, tensor: str, *shapes: tuple[int, ...]) -> None:
        """Raise CompileError where the tensor has none of the shapes."""
        if (found := self.shape(tensor)) not in shapes:
            wanted = " or ".join(str(list(s)) for s in shapes)
            raise self.refusal(f"has `{self.named(tensor)}` as {list(found)}, where the others make it {wanted}", "download it again")

    def refusal(self, what: str, *fixes: str) -> Exception:
        return failure(UNKNOWN_QUANTIZATION, self.source, what, *fixes)


class Encoded(ABC):
    """A matrix [O, K], read as f32. block_dimension: that along which its blocks run."""

    block_dimension = -1

    def __init__(self, module: StoredModule, shape: tuple[int, int]) -> None:
        self.module, self.shape = module, shape

    @property
    def info(self) -> TensorInfo:
        return TensorInfo("f32", self.shape)

    def read(self, name: str) -> torch.Tensor:
        """The values, in memory of their own; decoded in pieces, so that little more is held than the result."""
        import torch

        values = torch.empty(self.shape, dtype=torch.float32)
        for rows, some in self._pieces():
            values[rows] = some
        return values

    def format(self) -> str | None:
        """The layout that has all numbers as they are, None where there is none."""
        return None

    def blocks(self) -> torch.Tensor:
        """What that layout is packed from, u8 [O, bytes of a row], in memory of its own."""
        raise AssertionError("has no format")

    @abstractmethod
    def _pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows, and their values as f32."""

    def _rows(self, multiple: int) -> Iterator[slice]:
        step = max(_CHUNK // max(self.shape[1], 1) // multiple, 1) * multiple
        return (slice(first, min(first + step, self.shape[0])) for first in range(0, self.shape[0], step))


class Affine(Encoded):
    """scale * (code - zero). codes are unsigned. bits: of a code."""

    def __init__(self, module: StoredModule, shape: tuple[int, int], bits: int) -> None:
        super().__init__(module, shape)
        self.bits = bits

    @abstractmethod
    def codes(self, rows: slice) -> torch.Tensor:
        """u8 [rows, K], contiguous; of rows from a multiple of 32 on."""

    @abstractmethod
    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales f32 and zero points u8 [O, G]."""

    @abstractmethod
    def run(self) -> int | torch.Tensor:
        """How many neighbours in k share a scale, or i64 [K], which one each has, where they are not neighbours."""

    @property
    def of_rows(self) -> bool:
        """Whether the method means a scale for each row, and what a row is multiplied with to be rounded with one scale, too."""
        return False

    def format(self) -> str | None:
        run = self.run()
        if self.bits == 8 and self.of_rows:
            return "int8"
        if not isinstance(run, int) or self.bits not in (4, 8) or run % 32 or self.shape[1] % run:
            return None
        return f"affine{self.bits}_{128 if self.bits == 4 and run % 128 == 0 else 32}"

    def blocks(self) -> torch.Tensor:
        import torch

        form, (scale, zero), run = self.format(), self.lines(), self.run()
        assert form is not None
        assert isinstance(run, int)
        if form != "int8":
            repeats = run // int(form.rpartition("_")[2])
            scale, zero = scale.repeat_interleave(repeats, 1), zero.repeat_interleave(repeats, 1)
        return torch.cat([blocks_of_codes(form, self.codes(rows), scale[rows], zero[rows]) for rows in self._rows(32)])

    def _pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        import torch

        (scale, zero), run = self.lines(), self.run()
        zero = zero.float()
        if isinstance(run, int) and self.shape[1] % run == 0:
            for rows in self._rows(32):
                codes = self.codes(rows).float().view(-1, scale.shape[1], run)
                yield rows, codes.sub_(zero[rows][..., None]).mul_(scale[rows][..., None]).flatten(1)
            return
        which = torch.arange(self.shape[1]) // run if isinstance(run, int) else run
        for rows in self._rows(32):
            yield rows, (self.codes(rows).float() - zero[rows][:, which]) * scale[rows][:, which]


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes in words of 32 bits, the lowest first: i32 [..., W] to u8 [..., W * 32 / bits]."""
    import torch

    stored = words.contiguous().view(torch.uint8)
    if bits == 8:
        return stored
    return torch.stack([stored >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], -1).flatten(-2)
