"""How a call runs on a GPU, as data: a program keeps it, a compiler makes its machine code, and a device launches it.

A kernel for GPUs gives, for a call whose types, widths and attributes are known, a `Plan`: which functions are compiled with which
constants, and how each is launched, in sizes of the step. Nothing of it needs a GPU, Triton or CUDA to be written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tskernels.gpu.sizes import Expression

if TYPE_CHECKING:
    from tskernels.registry import Call
    from tskernels.target import Target

Number = int | float


@dataclass(frozen=True, slots=True)
class TritonSource:
    """A function of Triton: `module` imports it, `function` is its name there."""

    module: str
    function: str


@dataclass(frozen=True, slots=True)
class CudaSource:
    """A kernel in CUDA C++: a file beside this one, and the `extern "C"` name of the kernel. Constants become `-D NAME=VALUE`."""

    file: str
    function: str


@dataclass(frozen=True, slots=True)
class Operand:
    """The address of the call's operand of this position, where its view begins."""

    index: int


@dataclass(frozen=True, slots=True)
class Out:
    """The address of the result."""


@dataclass(frozen=True, slots=True)
class Constants:
    """The address of what the kernel wanted computed when the program was compiled, f32."""


@dataclass(frozen=True, slots=True)
class ScratchSpace:
    """The address of scratch memory of the plan, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """The address of what the host prepared for the step, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A number of the rank: the value of the call's parameter of this name (`shard`), i32."""

    name: str


@dataclass(frozen=True, slots=True)
class Peers:
    """Of the memory that the ranks of the call's axis share (`peers.py`): the address of the addresses of each rank's, in their order;
    this rank's place among them; or how many they are. The numbers are i32."""

    fact: Literal["memories", "rank", "ranks"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """A size of the step, or a number; dtype: i32, i64 or f32; multiple: what it is a multiple of, which the compiler may rely on."""

    value: Number | Expression
    dtype: str = "i32"
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A descriptor of the tensor copy engine, passed by value, of what lies at `of`. sizes: elements, innermost dimension first; strides:
    bytes of all but the innermost; box: elements of a tile; swizzle: bytes, 0, 32, 64 or 128."""

    of: Operand | Out | ScratchSpace
    dtype: str
    sizes: tuple[int | Expression, ...]
    strides: tuple[int | Expression, ...]
    box: tuple[int | Expression, ...]
    swizzle: int = 0


Argument = Operand | Out | Constants | ScratchSpace | PreparedInput | Coordinate | Peers | Scalar | TensorMap


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch. arguments: of all parameters that are not constants, by name, in the order of the function's parameters; an
    address is taken to be a multiple of 16 bytes. types: of each address, what lies there (`bf16`), where the source is Triton's;
    shared: bytes of dynamic shared memory that a kernel in CUDA C++ asks for; cluster: thread blocks of one.

    dependent: may begin while launches before it still run (programmatic dependent launch), where the device has that: a function of
    Triton's has a constant DEPENDENT then, and waits by itself (`functions_triton.overlap`), as one in CUDA C++ always does. Right it is
    because all of its threads wait for the launch before, which has ended only when it has waited, too, so that after the wait nothing
    asked for earlier runs any more; and until then it writes nothing, and reads nothing that a launch of the step writes. early: the
    operands that it does read before, which have to be weights, what the step is given, or caches, of which it reads what earlier steps
    wrote: where one is none of these, the launch waits for the end of the one before (`launch_table.py`)."""

    source: TritonSource | CudaSource
    grid: tuple[int | Expression, int | Expression, int | Expression]
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Number | str | bool] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    shared: int = 0
    cluster: int = 1
    dependent: bool = False
    early: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """What runs in steps of `tokens` tokens and more, and of at least `newest` of one sequence, up to the next variant's. kernel: another
    of the op, without a plan, instead of launches."""

    launches: tuple[Launch, ...]
    tokens: int = 1
    newest: int = 1
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory of the device that a call needs while it runs. zeroed: once, when it is allocated; each call leaves it zeroed."""

    name: str
    bytes: int | Expression
    zeroed: bool = False


@dataclass(frozen=True, slots=True)
class StepShape:
    """What the host knows of a step: of each sequence the rows that are its newest, and its length with them. Where ranks share out the
    rows, those of this rank alone, counted from its first; other sequences have none."""

    spans: list[tuple[int, int]]
    lengths: list[int]
    sizes: Mapping[str, int]
    """T, S, P and SMS."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An input that the host makes for each step from its shape (a list of work for thread blocks). function: `module:name`, which takes a
    StepShape and the keywords, and gives an int32 array of at most `capacity` numbers. Equal ones are made once for all layers."""

    name: str
    function: str
    keywords: Mapping[str, Number | str]
    capacity: int | Expression


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call runs. variants: in rising order of tokens and of newest, the first from 1 on; the last that suits a step runs it.
    exchanged: bytes that a rank gives each of the others through the memory they share; where that has no room for so many, or there is
    none, the op's reference runs instead."""

    variants: tuple[Variant, ...]
    scratch: tuple[Scratch, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    exchanged: int | Expression | None = None


Planner = Callable[["Call", "Target"], Plan]
"""What a kernel for GPUs has instead of a function that runs it."""

Level = Literal["interpreted", "compiled", "emulated", "run"]


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a kernel was verified; device and date: of a run."""

    level: Level
    device: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled function takes of a multiprocessor: registers a thread, bytes of shared memory, columns of tensor memory, bytes of
    stack a thread; and the SHA-256 of its machine code."""

    registers: int
    shared: int
    tensor_columns: int
    stack: int
    sha256: str
