"""The passes in their order, each followed by the verifier."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType
from typing import Protocol, Self, runtime_checkable

from tsc.graph import Program
from tskernels.registry import ROWS, Measurements
from tskernels.target import Target
from tspasses.choose_layouts import ChooseLayouts
from tspasses.expand_latents import ExpandLatents
from tspasses.fuse_gated import FuseGated
from tspasses.fuse_linears import FuseLinears
from tspasses.fuse_qk_rope import FuseQkRope
from tspasses.fuse_residual import FuseResidual
from tspasses.keep_formats import Formats, KeepFormats
from tspasses.lower import lower
from tspasses.placed import PlacedModel
from tspasses.plan_memory import PlanMemory
from tspasses.screen_head import ScreenHead
from tspasses.select_kernels import SelectKernels
from tspasses.simplify import Simplify
from tspasses.store_caches import StoreCaches
from tspasses.verify import verify


class Pass(Protocol):
    """A rewrite of a program. Takes ownership of it and returns it."""

    @property
    def name(self) -> str: ...

    def run(self, program: Program) -> Program: ...


@runtime_checkable
class StoragePass(Pass, Protocol):
    """A pass that decides how weights are stored."""

    def agree(self, programs: Sequence[Program]) -> Self:
        """The pass that does so alike in each of the programs of one artifact, and is run on each of them."""


def passes(
    target: Target,
    *,
    screen: bool = True,
    formats: Formats = MappingProxyType({}),
    cache_layout: str = ROWS,
    measured: Measurements | None = None,
) -> Sequence[Pass]:
    """All passes after lowering. screen: with a copy of the head that says which logits may be the largest; formats: of weights that are
    to be stored quantized; cache_layout: of all caches; measured: what kernels took, which goes before what they are predicted to take."""
    screening = (ScreenHead(target),) if screen else ()
    stored = (KeepFormats(target, formats), FuseGated(), FuseLinears(), *screening, ChooseLayouts(target, measured=measured))
    graph = (Simplify(), StoreCaches(cache_layout), ExpandLatents(target), *stored)
    return (*graph, FuseQkRope(target), FuseResidual(target), SelectKernels(target, measured), PlanMemory())


def compile_graphs(
    plans: Sequence[PlacedModel],
    target: Target,
    progress: Callable[[str], None] = lambda _: None,
    *,
    screen: bool = True,
    formats: Formats = MappingProxyType({}),
    cache_layout: str = ROWS,
    measured: Measurements | None = None,
    kept: Collection[str] = (),
) -> Sequence[Program]:
    """Lower the entries of a model as they were placed for each range of step sizes, and run every pass, verified after each. What they
    store of one tensor is the same. kept: what other entries take."""
    programs = []
    for placed in plans:
        progress("lower")
        program = lower(placed, kept)
        verify(program, "lower")
        programs.append(program)
    for step in passes(target, screen=screen, formats=formats, cache_layout=cache_layout, measured=measured):
        progress(step.name)
        agreed = step.agree(programs) if isinstance(step, StoragePass) else step
        for index, program in enumerate(programs):
            programs[index] = agreed.run(program)
            verify(programs[index], step.name)
    return programs
