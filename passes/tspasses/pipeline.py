"""The passes in their order, each followed by the verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tsc.graph import Program
from tskernels.target import Target
from tspasses.fuse_linears import FuseLinears
from tspasses.lower import lower
from tspasses.placed import PlacedModel
from tspasses.plan_memory import PlanMemory
from tspasses.select_kernels import SelectKernels
from tspasses.simplify import Simplify
from tspasses.verify import verify


class Pass(Protocol):
    """A rewrite of a program. Takes ownership of it and returns it."""

    @property
    def name(self) -> str: ...

    def run(self, program: Program) -> Program: ...


def passes(target: Target) -> Sequence[Pass]:
    """All passes after lowering."""
    return (Simplify(), FuseLinears(), SelectKernels(target), PlanMemory())


def compile_graphs(placed: PlacedModel, target: Target, progress: Callable[[str], None] = lambda _: None) -> Program:
    """Lower a placed model and run every pass, verified after each."""
    progress("lower")
    program = lower(placed)
    verify(program, "lower")
    for step in passes(target):
        progress(step.name)
        program = step.run(program)
        verify(program, step.name)
    return program
