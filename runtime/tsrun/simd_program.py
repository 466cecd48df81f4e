"""Programs whose kernels are all in C++: bound once for steps of any size, and run without the interpreter. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tskernels import simd
from tsrun.binding import COPY, BoundCall, BoundPlan
from tsrun.errors import ArtifactError
from tsrun.output import Output
from tsrun.places import Place, fixed, value

if TYPE_CHECKING:
    from tskernels import _cpu
    from tskernels.shared_memory import SharedMemory


def can_run(calls: Sequence[BoundCall], memory: SharedMemory | None) -> bool:
    """Whether every kernel of a program is one of these, they run here, and collectives have memory that the ranks share."""
    if not simd.is_available():
        return False
    kernels = [simd.TABLE.get((call.op, call.kernel)) for call in calls if call.op != COPY]
    return all(kernel is not None and (memory is not None or not kernel.collective) for kernel in kernels)


class SimdPrograms:
    """The plans of a program, which take turns in one arena. max_rows: of logits in a step, of each of which its last call finds the
    largest; None where it gives something else. num_drafts: how many of the plans, the last ones, are drafts; team: of threads."""

    def __init__(
        self,
        plans: Sequence[BoundPlan],
        file: Path,
        threads: int,
        max_rows: int | None,
        memory: SharedMemory | None = None,
        *,
        num_drafts: int = 0,
        team: _cpu.Team | None = None,
    ) -> None:
        from tskernels import _cpu

        self.team = team or (_cpu.Team(threads) if memory is None else _cpu.Team(threads, spins=memory.spins))
        self._plans = plans
        counts = (len(plans) - num_drafts, num_drafts)
        found = [None if max_rows is None else np.zeros(max_rows, dtype=np.int32) for _ in counts]  # a draft leaves its step's as it was
        self._largest = [largest for largest, count in zip(found, counts, strict=True) for _ in range(count)]
        arena = _cpu.Arena()
        self._programs = []
        self._heads: list[_cpu.Program | None] = []
        for bound, largest in zip(plans, self._largest, strict=True):
            program = _cpu.Program(arena, bound.plan.frame.T, bound.plan.frame.S)
            for call in bound.calls:
                try:
                    _add(program, call, memory)
                except (ValueError, KeyError) as error:
                    raise ArtifactError(str(file), f"{call.op} can not be bound ({error})", "compile the artifact again") from None
            if largest is not None:
                place = fixed(largest.ctypes.data, "i32", (("S", 1),), largest)
                program.add("max_index", [bound.output.operand], place.operand, [], [])
            self._programs.append(program)
            self._heads.append(self._head(arena, bound) if memory is None else None)

    @property
    def can_run_head(self) -> bool:
        return None not in self._heads

    def _head(self, arena: _cpu.Arena, bound: BoundPlan) -> _cpu.Program | None:
        """The last call, where it is a screened head: what it reads is still there when it has run."""
        from tskernels import _cpu

        if bound.calls[-1].op != "ts::screened_linear":
            return None
        head = _cpu.Program(arena, bound.plan.frame.T, bound.plan.frame.S)
        _add(head, bound.calls[-1], None)
        return head

    def measure(self, plan: int, T: int, S: int, P: int) -> dict[str, float]:
        """Run it, and give the seconds that its kernels took, by their names, with the waits before them."""
        found: dict[str, float] = {}
        for kernel, seconds in self._programs[plan].measure(self.team, T, S, P):
            found[kernel] = found.get(kernel, 0.0) + seconds
        return found

    def run_head(self, plan: int, T: int, S: int, P: int) -> Output:
        head, output = self._heads[plan], self._plans[plan].output
        assert head is not None
        head.run(self.team, T, S, P)
        return self._output(head, output, {"T": T, "S": S, "P": P}, None)

    def run(self, plan: int, T: int, S: int, P: int) -> Output:
        program, output = self._programs[plan], self._plans[plan].output
        program.run(self.team, T, S, P)
        largest = self._largest[plan]
        return self._output(program, output, {"T": T, "S": S, "P": P}, None if largest is None else largest[:S])

    @staticmethod
    def _output(program: _cpu.Program, output: Place, sizes: Mapping[str, int], largest: NDArray[np.int32] | None) -> Output:
        return Output(program.address(output.operand), output.dtype, tuple(value(n, sizes) for n in output.shape), largest)


def _add(program: _cpu.Program, call: BoundCall, memory: SharedMemory | None) -> None:
    tensors = [arg.operand for arg in call.args if isinstance(arg, Place)]
    if call.op == COPY:
        program.add("copy", tensors, call.out.operand, [], [])
        return
    kernel = simd.TABLE[call.op, call.kernel]
    if kernel.takes_constants and not call.constants:
        raise ValueError(f"without the constants that its kernel `{call.kernel}` takes")
    coordinates = dict(zip(kernel.coordinates, (arg for arg in call.args if not isinstance(arg, Place)), strict=False))
    numbers = kernel.numbers(coordinates | dict(call.attrs))
    group = memory.group(str(call.attrs["axis"])) if kernel.collective and memory is not None else None
    program.add(kernel.symbol, tensors, call.out.operand, list(numbers), list(call.constants), group)
