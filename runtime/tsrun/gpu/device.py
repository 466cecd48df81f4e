"""What the executor asks of a GPU. `cuda.py` is one; tests have others, which record what they are asked, or interpret it on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tskernels.dtypes import size_bytes
from tsrun.gpu.kernels_file import Function
from tsrun.places import Place, fixed

Bytes = NDArray[np.uint8]
Handle = object
"""A function that was loaded; what has been recorded; a point in the device's work."""


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A descriptor of the tensor copy engine. sizes: elements, innermost first; strides: bytes of all but the innermost."""

    address: int
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


Value = int | float | TensorMap
Grid = tuple[int, int, int]


class Device(Protocol):
    """Work is done in the order in which it is asked for, while the caller goes on; `wait` is the only wait."""

    architecture: str
    multiprocessors: int
    collectives: Literal["gloo", "nccl"]
    """What carries those of torch tensors that lie on it."""

    @property
    def free_bytes(self) -> int:
        """Of its memory."""

    def entered(self) -> AbstractContextManager[None]:
        """A thread that asks for work does so within it."""

    def memory(self, num_bytes: int) -> Tensor:
        """Zeros: u8[num_bytes] on the device."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Place:
        """The same as a place, whose buffer they are."""
        found = self.memory(max(1, prod(shape)) * size_bytes(dtype))
        return fixed(found.data_ptr(), dtype, shape, found)

    def share(self, num_bytes: int) -> tuple[int, bytes]:
        """The address of zeros that other processes of this host may open on their devices, and what they open it by."""

    def open_shared(self, handle: bytes) -> int:
        """The address here of what another process shares. Raises MachineError where this device can not reach it."""

    def close_shared(self, address: int) -> None:
        """Of what was opened."""

    def unshare(self, address: int) -> None:
        """Give back what is shared, when no other process has it open."""

    def upload(self, source: Bytes) -> Tensor:
        """A copy on the device, when it returns."""

    def pinned(self, num_bytes: int) -> Bytes:
        """Memory of the host that the device copies from and to without a detour; zeros."""

    def load(self, function: Function, code: bytes) -> Handle:
        """Raises MachineError where it can not be loaded."""

    def copy_in(self, target: Tensor, source: Bytes) -> None:
        """From pinned memory, which stays as it is until that is done."""

    def copy_out(self, target: Bytes, source: Tensor) -> None:
        """To pinned memory."""

    def launch(self, function: Handle, grid: Grid, arguments: Sequence[Value]) -> None:
        """arguments: of its signature, addresses as numbers."""

    def call(self, kernel: Callable[[], object]) -> None:
        """A kernel of torch's ops."""

    def record(self, work: Callable[[], None]) -> Handle:
        """What `work` asks for, which is not done now."""

    def replay(self, recorded: Handle) -> None: ...
    def mark(self) -> Handle:
        """The point that work has come to when all that was asked for is done."""

    def wait(self, mark: Handle) -> None: ...
    def finish(self) -> None:
        """Wait until nothing is left to do, nor to be let go of."""
