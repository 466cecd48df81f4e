"""The passes in their order, each followed by the verifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tsc.graph import Program
from tskernels.target import Target
from tspasses.fuse_linears import FuseLinears, Group, common_groups
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


def passes(target: Target, groups: Mapping[tuple[str, str], Group] | None = None) -> Sequence[Pass]:
    """All passes after lowering; groups: of weights to join."""
    return (Simplify(), FuseLinears(groups), SelectKernels(target), PlanMemory())


def compile_graphs(plans: Sequence[PlacedModel], target: Target, progress: Callable[[str], None] = lambda _: None) -> Sequence[Program]:
    """Lower a model as it was placed for each range of step sizes, and run every pass, verified after each. What they store is the same."""
    programs = []
    for placed in plans:
        progress("lower")
        program = lower(placed)
        verify(program, "lower")
        programs.append(program)

    def run(step: Pass) -> None:
        progress(step.name)
        for index, program in enumerate(programs):
            programs[index] = step.run(program)
            verify(programs[index], step.name)

    first, *rest = passes(target)
    run(first)
    if len(programs) > 1:
        _, *rest = passes(target, common_groups(programs))
    for step in rest:
        run(step)
    return programs
