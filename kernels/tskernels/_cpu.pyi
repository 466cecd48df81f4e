"""C++ kernels for CPUs, and programs of them (kernels/csrc)."""

from collections.abc import Sequence
from typing import Literal, overload

Extent = int | tuple[Literal["T", "S", "P"], int]
"""A number, or the tokens, sequences or table columns of a step divided by one."""
Operand = tuple[str, int, int, int, str, Sequence[Extent], Sequence[Extent]]
"""region `fixed`, `T` or `S`; address, in an arena bytes per row; bytes per row that its storage takes there; bytes from the storage's
beginning; element type; sizes; strides in elements."""

def isa() -> str | None:
    """The instruction set whose kernels are used: `avx512_bf16`, `avx512` or `avx2`; None where there is none."""

def has_isa(name: str) -> bool: ...
def use_isa(name: str) -> None:
    """Use another instruction set from now on, for tests; ValueError when this processor lacks it."""

def has_kernel(name: str) -> bool: ...

class Team:
    """Threads that run one program at a time; the caller is the first of them. cpus: where the others are bound to, after the first; spins:
    how often who waits looks before it sleeps."""

    def __init__(self, num_workers: int, cpus: Sequence[int] = (), spins: int = ...) -> None: ...
    @property
    def num_workers(self) -> int: ...

class Segment:
    """Shared memory of the ranks of a host, a cell for each in each area; OSError without room or permission. A rank takes part until it
    leaves, or its process ends."""

    @staticmethod
    def create(name: str, num_ranks: int, num_areas: int) -> Segment:
        """As rank 0. The name begins with `/`."""
    @staticmethod
    def open(name: str, num_ranks: int, num_areas: int, rank: int) -> Segment: ...
    @staticmethod
    def unlink(name: str) -> None:
        """Take the name away; who has opened it keeps the memory."""
    def has(self, rank: int) -> bool:
        """Whether another rank takes part."""
    def leave(self) -> None: ...

class RankGroup:
    """The ranks of an axis, which run the same collectives in the same order. Without arguments a lone rank."""

    @overload
    def __init__(self) -> None: ...
    @overload
    def __init__(self, segment: Segment, area: int, members: Sequence[int], rank: int, spins: int, timeout_seconds: float) -> None:
        """rank: this one's place among the members; groups that share an area have no rank in common."""
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

class Arena:
    """Memory of intermediates, shared by programs that take turns."""

    def __init__(self) -> None: ...

class Program:
    """Calls in order. What they read and write must stay where it is; `run` lets go of the interpreter's lock."""

    def __init__(self, arena: Arena, token_bytes: int, sequence_bytes: int) -> None: ...
    def add(
        self,
        kernel: str,
        operands: Sequence[Operand],
        out: Operand,
        numbers: Sequence[float],
        constants: Sequence[float],
        group: RankGroup | None = None,
    ) -> None:
        """group: of a collective."""
    def run(self, team: Team, T: int, S: int, P: int) -> None:
        """RuntimeError when another rank has ended, or does not come to a collective."""
    def measure(self, team: Team, T: int, S: int, P: int) -> list[tuple[str, float]]:
        """Run it; the kernel of each call, and the seconds that it took the first worker, with the wait before it."""
    def address(self, operand: Operand) -> int:
        """Where an operand of the last step lies."""
    @property
    def num_calls(self) -> int: ...
    @property
    def num_barriers(self) -> int: ...

def call(
    team: Team,
    kernel: str,
    operands: Sequence[Operand],
    out: Operand,
    numbers: Sequence[float],
    constants: Sequence[float],
    group: RankGroup | None = None,
) -> None:
    """Run one kernel on operands at fixed addresses."""
