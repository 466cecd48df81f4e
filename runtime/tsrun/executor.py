"""Runs a program on one rank: holds weights, caches and arenas, binds a step shape once and replays it."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from math import prod

import torch
from torch import Tensor

from tskernels.communicator import group_members
from tskernels.dtypes import torch_dtype
from tsrun.artifact import PROGRAM, Artifact
from tsrun.binding import Binder, BoundProgram, Kernels, new_arena
from tsrun.errors import ArtifactError
from tsrun.limits import Limits
from tsrun.program import Program, Region
from tsrun.step import Step
from tsrun.step_inputs import StepInputs, table_columns
from tsrun.weights import Weights

_BOUND_SHAPES = 32


class Executor:
    """One rank's part of the model. `run` is the token loop: refill the inputs, replay the calls.

    The logits that `run` returns lie in the arena: they are valid until the next run.
    """

    def __init__(self, artifact: Artifact, program: Program, rank: int, limits: Limits) -> None:
        self._program = program
        self._inputs = StepInputs(limits)
        self._weights = Weights(artifact.weights_file(rank))
        self._kernels = Kernels(program, artifact.file(PROGRAM))
        self._coordinates = _coordinates(artifact, program, rank)
        self._limits = limits
        # Zeros and not whatever was there: a kernel may multiply rows that it masks, and NaN times zero is NaN.
        # One page more than there are: the tokens that pad a step are written there, and never read.
        self._caches = [
            _zeros((limits.pages[cache.window] + 1, limits.page_size, *cache.page), torch_dtype(cache.dtype)) for cache in program.caches
        ]
        self._capacity: dict[Region, int] = {"T": 0, "S": 0}
        self._most: dict[Region, int] = {"T": limits.max_step_tokens, "S": limits.max_sequences}
        self._arenas: dict[Region, Tensor] = {"T": new_arena(0), "S": new_arena(0)}
        self._bound: OrderedDict[tuple[int, int, int], BoundProgram] = OrderedDict()
        with torch.inference_mode():  # a first binding, so that what does not fit is told at load
            self._bind(program.plans[0].token_multiple, 1, table_columns(1))

    def run(self, step: Step) -> Tensor:
        """Run one step; the result is the program's output, [S, V]."""
        T, S = len(step.ids), len(step.last)
        columns = table_columns(self._limits.pages_of(int(step.lengths.max())))
        with torch.inference_mode():
            bound = self._bound.get((T, S, columns))
            if bound is None:
                bound = self._bind(T, S, columns)
            else:
                self._bound.move_to_end((T, S, columns))
            self._inputs.fill(step, columns)
            for call in bound.calls:
                call()
        return bound.output

    def _bind(self, T: int, S: int, columns: int) -> BoundProgram:
        self._grow({"T": T, "S": S})
        binder = Binder(self._program, self._kernels, self._weights, self._caches, self._coordinates, self._arenas)
        bound = binder.bind(self._inputs.views(T, S, columns), T, S, columns)
        self._bound[T, S, columns] = bound
        if len(self._bound) > _BOUND_SHAPES:
            self._bound.popitem(last=False)
        return bound

    def _grow(self, wanted: dict[Region, int]) -> None:
        """Make the arenas large enough. Bound shapes point into the old ones, so they go."""
        for region, size in wanted.items():
            if size > self._capacity[region]:
                self._bound.clear()
                self._capacity[region] = max(size, min(2 * self._capacity[region], self._most[region]))
                self._arenas[region] = new_arena(self._program.largest_frame(region) * self._capacity[region])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are written: torch.zeros would touch all of it."""
    return torch.frombuffer(mmap.mmap(-1, prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def _coordinates(artifact: Artifact, program: Program, rank: int) -> dict[str, int]:
    """This rank's index on each axis that the program asks for."""
    sizes = dict(artifact.manifest.axes)
    wanted = {given.axis for graph in program.graphs.values() for given in graph.inputs if given.axis is not None}
    try:
        return {axis: group_members(sizes, rank, axis).index(rank) for axis in wanted}
    except ValueError as error:
        raise ArtifactError(str(artifact.file(PROGRAM)), str(error), "compile the artifact again") from None
