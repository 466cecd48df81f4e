"""Runs a program on one rank: holds weights and caches, and binds the program to what runs its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from tskernels.cache_pages import table_columns
from tskernels.mesh_axes import group_members
from tsrun.artifact import PROGRAM, Artifact
from tsrun.binding import Binder, Observe
from tsrun.errors import ArtifactError
from tsrun.jax_steps import is_for_jax
from tsrun.kept import Kept
from tsrun.limits import Limits
from tsrun.memory import zeros
from tsrun.output import Output
from tsrun.page_copies import PageCopies
from tsrun.program import Program, Region
from tsrun.sampler import NOT_KEPT, Draws
from tsrun.simd_program import SimdPrograms, can_run
from tsrun.step import Ints, Step
from tsrun.step_inputs import StepInputs
from tsrun.weights import Weights

if TYPE_CHECKING:
    from tskernels.shared_memory import SharedMemory
    from tsrun.embedding import Embeds
    from tsrun.gpu.device import Device
    from tsrun.gpu.peers import PeerMemory
    from tsrun.gpu.programs import GpuPrograms


class Programs(Protocol):
    """The plans of a program, bound."""

    def run(self, plan: int, T: int, S: int, P: int) -> Output:
        """Run one of the plans; its step inputs are filled."""

    def run_head(self, plan: int, T: int, S: int, P: int) -> Output:
        """Run the head of the step before again, with another `keep`."""

    @property
    def can_run_head(self) -> bool:
        """Whether it can be run alone."""


class HoldsPages(Protocol):
    """Caches or states, by pages."""

    def copy(self, copies_C3: Ints) -> None:
        """Copy pages, each (group, source, target), in order."""


class Executor:
    """One rank's part of the model. `run` is the token loop: refill the inputs, run the plan for so many tokens.

    The output of `run` lies in the arena: it is valid until the next run. memory: what the ranks share, where they do; screen: steps will
    keep few logits, so that of a screened head only a few rows are read; observe: is told of each call of a kernel; needs_torch: calls
    run one by one, since some of the kernels are not in C++, collectives have no such memory, or somebody observes; beside: another, whose
    threads this one runs on, in turns with it; device: the GPU that the artifact is for, None where it runs here; peers: of ranks on GPUs.
    """

    def __init__(
        self,
        artifact: Artifact,
        program: Program,
        rank: int,
        limits: Limits,
        threads: int,
        memory: SharedMemory | None = None,
        *,
        screen: bool = True,
        observe: Observe | None = None,
        beside: Executor | None = None,
        device: Device | None = None,
        peers: Mapping[str, PeerMemory] = MappingProxyType({}),
    ) -> None:
        self._program = program
        self._inputs = StepInputs(limits)
        memory_of = zeros if device is None else device.zeros
        self._limits = limits
        self._device = device
        self._gpu: GpuPrograms | None = None
        self._pages: HoldsPages
        self.programs: Programs
        if is_for_jax(artifact.manifest):
            from tsrun.jax_program import JaxPrograms  # late: it loads JAX

            self.needs_torch = False
            self._kept = Kept(program, 0)  # no drafts
            self.programs = self._pages = JaxPrograms(artifact, program, limits, self._inputs)
            return
        weights = Weights(artifact.weights_file(rank), screen=screen)
        caches = [memory_of((limits.stored_pages[cache.window], limits.page_size, *cache.page), cache.dtype) for cache in program.caches]
        states = [memory_of((limits.num_states, *state.shape), state.dtype) for state in program.states]
        self._pages = PageCopies(program, limits, caches, states)
        self._kept = Kept(program, limits.max_step_tokens, memory_of)
        coordinates = _coordinates(artifact, program, rank)
        binder = Binder(program, weights, caches, states, coordinates, self._inputs.places(), self._kept.taken)
        plans = [binder.bind(plan, self._kept.taken) for plan in program.plans]
        plans += [binder.bind(plan, self._kept.made) for plan in program.drafts]
        file = artifact.file(PROGRAM)
        gives_logits = artifact.manifest.gives == "logits"
        self.needs_torch = device is not None or observe is not None or not all(can_run(bound.calls, memory) for bound in plans)
        if device is not None:
            from tsrun.gpu.programs import GpuPrograms

            self.programs = self._gpu = GpuPrograms(
                device, artifact, program, plans, limits, self._inputs, gives_logits=gives_logits, peers=peers
            )
        elif self.needs_torch:
            from tsrun.torch_program import TorchPrograms  # late: a program in C++ is up in less time than torch is

            most: dict[Region, int] = {"T": limits.max_step_tokens, "S": limits.max_output_rows}
            self.programs = TorchPrograms(program, plans, file, threads, most, observe)
        else:
            most_rows = limits.max_output_rows if gives_logits else None
            own = None if beside is None or not isinstance(beside.programs, SimdPrograms) else beside.programs.team
            self.programs = SimdPrograms(plans, file, threads, most_rows, memory, num_drafts=len(program.drafts), team=own)

    def run(self, step: Step, draws: Draws | Embeds | None = None) -> Output:
        """Run one step; the result is the program's output, with the tokens that are drawn from its logits, or the embeddings."""
        return self.start(step, draws)()

    def start(self, step: Step, draws: Draws | Embeds | None = None) -> Callable[[], Output]:
        """Begin a step; what is given back waits for its end, and gives what `run` does. Where `runs_ahead`, another may be begun before
        that, and ids of it may be the places, `~s`, of sequences in this one, whose largest logits they are; else all is done here."""
        if self._device is None:
            self._bring(step)
        elif step.copies.size or step.carried.size:
            with self._device.entered():
                self._device.call(partial(self._bring, step))
        sizes = self._filled(step)
        if self._gpu is not None:
            return partial(self._drawn, self._gpu.start(*sizes), draws, sizes)
        output = self._drawn(partial(self.programs.run, *sizes), draws, sizes)
        return lambda: output

    @property
    def runs_ahead(self) -> bool:
        return self._gpu is not None

    def _bring(self, step: Step) -> None:
        self._pages.copy(step.copies)
        self._kept.carry(step.carried)

    def _drawn(self, ended: Callable[[], Output], draws: Draws | Embeds | None, sizes: tuple[int, int, int, int]) -> Output:
        output = ended()
        if draws is None:
            return output
        chosen = draws.choose(output)
        if isinstance(draws, Draws) and (chosen.tokens == NOT_KEPT).any():
            self._inputs.keep_all(chosen.tokens == NOT_KEPT)
            output = self.programs.run_head(*sizes)
            chosen = draws.choose_again(output, chosen)
        return replace(output, chosen=chosen)

    def close(self) -> None:
        """Before its rank leaves the group; it runs no more."""
        if self._gpu is not None:
            self._gpu.close()

    def measure(self, step: Step) -> dict[str, float]:
        """Run one step, and give the seconds of its kernels; of programs in C++ alone."""
        assert isinstance(self.programs, SimdPrograms)
        self._pages.copy(step.copies)
        return self.programs.measure(*self._filled(step))

    def _filled(self, step: Step) -> tuple[int, int, int, int]:
        """The plan and the sizes of a step, whose inputs are in place."""
        T, S = len(step.ids), len(step.last)
        columns = table_columns(self._limits.pages_of(int(step.lengths.max())))
        self._inputs.fill(step, columns)
        return self._program.plan_for(T, drafting=step.drafting), T, S, columns


def _coordinates(artifact: Artifact, program: Program, rank: int) -> dict[str, int]:
    """This rank's index on each axis that the program asks for."""
    sizes = dict(artifact.manifest.axes)
    wanted = {given.axis for graph in program.graphs.values() for given in graph.inputs if given.axis is not None}
    try:
        return {axis: group_members(sizes, rank, axis).index(rank) for axis in wanted}
    except ValueError as error:
        raise ArtifactError(str(artifact.file(PROGRAM)), str(error), "compile the artifact again") from None
