"""A call's launches, with every number settled: of tensors that lie on the device, for a step of known sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from torch import Tensor

from tskernels.gpu.launch import StepShape
from tskernels.gpu.sizes import Json, from_json, of_operands, value
from tskernels.gpu.splits import WHOLE_STEP
from tsrun.errors import ArtifactError
from tsrun.gpu.device import Grid, TensorMap, Value
from tsrun.gpu.kernels_file import (
    KERNELS,
    Argument,
    Constants,
    Coordinate,
    Launch,
    Operand,
    Out,
    Peers,
    Plan,
    Prepared,
    PreparedInput,
    Scalar,
    ScratchSpace,
    Size,
)
from tsrun.gpu.peers import PeerMemory
from tsrun.step import Ints


@dataclass(frozen=True, slots=True)
class SettledLaunch:
    """function: its number in kernels.json."""

    function: int
    grid: Grid
    arguments: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class CallOnDevice:
    """A call whose operands and result are on the device. coordinates: its parameters that are numbers of the rank; sizes: T, S, P and SMS;
    newest: the most newest tokens of a sequence; addresses of constants, by name of scratch memory, and by name of prepared inputs; peers:
    of a call that exchanges."""

    operands: Sequence[Tensor]
    out: Tensor
    coordinates: Mapping[str, int]
    sizes: Mapping[str, int]
    constants: int = 0
    scratch: Mapping[str, int] = field(default_factory=dict)
    prepared: Mapping[str, int] = field(default_factory=dict)
    newest: int = 1
    peers: PeerMemory | None = None

    def size(self, given: Size) -> int:
        if isinstance(given, int):
            return given
        shapes, strides = [t.shape for t in self.operands], [t.stride() for t in self.operands]
        return value(of_operands(from_json(cast(Json, given)), shapes, strides), self.sizes)

    def settle(self, plan: Plan) -> list[SettledLaunch]:
        """What a step launches; a grid of no block is no launch."""
        found = []
        for launch in plan.variant(self.sizes["T"], self.newest).launches:
            grid = cast(Grid, tuple(self.size(n) for n in launch.grid))
            if all(grid):
                found.append(self._settled(launch, grid))
        return found

    def _settled(self, launch: Launch, grid: Grid) -> SettledLaunch:
        return SettledLaunch(launch.function, grid, tuple(self._value(a) for a in launch.arguments))

    def _value(self, argument: Argument) -> Value:
        match argument:
            case Operand(index=index):
                return self.operands[index].data_ptr()
            case Out():
                return self.out.data_ptr()
            case Constants():
                return self.constants
            case ScratchSpace(name=name):
                return self.scratch[name]
            case PreparedInput(name=name):
                return self.prepared[name]
            case Coordinate(name=name):
                return self.coordinates[name]
            case Peers(fact=fact):
                assert self.peers is not None
                return {"memories": self.peers.table.data_ptr(), "rank": self.peers.rank, "ranks": self.peers.ranks}[fact]
            case Scalar(value=number, dtype=dtype):
                return float(number if isinstance(number, float) else self.size(number)) if dtype == "f32" else self.size(number)
            case _:
                sizes, strides, box = (tuple(self.size(n) for n in found) for found in (argument.sizes, argument.strides, argument.box))
                address = self._value(argument.of)
                assert isinstance(address, int)
                return TensorMap(address, argument.dtype, sizes, strides, box, argument.swizzle)


def newest_of(beginnings: Sequence[int], spans: Sequence[tuple[int, int]]) -> int:
    """The most newest tokens of a sequence of a step, down to where a variant begins: steps of the same are launched alike."""
    most = max((last - first for first, last in spans), default=0)
    return max((newest for newest in beginnings if newest <= most), default=1)


Preparing = Callable[[list[tuple[int, int]], list[int]], Ints]
"""Of the spans and lengths of a step."""


def preparing(prepared: Prepared, sizes: Mapping[str, int], rows: int, shard: int, capacity: int) -> Preparing:
    """What makes an input for each step. rows: of the step that this rank has, beginning at `shard` times so many."""
    module, _, name = prepared.function.partition(":")
    if not module.startswith("tskernels."):
        raise ArtifactError(KERNELS, f"an input is made by {prepared.function!r}, which is not of tskernels", "compile the artifact again")
    function = getattr(importlib.import_module(module), name)
    own_sizes = {**sizes, "T": rows, WHOLE_STEP: sizes["T"]}

    def make(spans: list[tuple[int, int]], lengths: list[int]) -> Ints:
        first, last = shard * rows, (shard + 1) * rows
        own = [(max(b, first) - first, min(e, last) - first) if max(b, first) < min(e, last) else (0, 0) for b, e in spans]
        made: Ints = function(StepShape(own, lengths, own_sizes), **prepared.keywords)
        assert made.dtype == np.int32
        if len(made) > capacity:
            raise ArtifactError(KERNELS, f"{prepared.function} gives {len(made)} numbers, and there is room for {capacity}")
        return made

    return make
