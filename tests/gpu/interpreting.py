"""A device that is none: it records what it is asked for, and does it on the CPU, Triton's functions in the interpreter. It does so as late
as it may, when somebody waits: what the host changes too early shows.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from mmap import mmap
from pathlib import Path
from tempfile import mkstemp
from typing import Any, Literal

import numpy as np
import torch
from tests.gpu.interpreter import require
from torch import Tensor

from tskernels.dtypes import torch_dtype
from tsrun.gpu.device import Bytes, Device, Grid, Handle, Value
from tsrun.gpu.kernels_file import Function

require()


@dataclass
class Asked:
    """A thing that was asked for: copy_in, copy_out, launch, call, record, replay, mark or wait."""

    what: str
    function: Function | None = None
    grid: Grid | None = None
    arguments: Sequence[Value] = ()
    num_bytes: int = 0


@dataclass(eq=False)
class InterpretingDevice(Device):
    """asked: in order, but for what a recording does when it is played; pending: of it what is not done yet, and how much was. What it
    shares are files of the folder, which processes of this host may open."""

    architecture: str = "sm_90a"
    multiprocessors: int = 6
    free_bytes: int = 1 << 28
    asked: list[Asked] = field(default_factory=list)
    recording: list[Callable[[], object]] | None = None
    pending: deque[Callable[[], object]] = field(default_factory=deque)
    num_done: int = 0
    collectives: Literal["gloo", "nccl"] = "gloo"
    mapped: list[mmap] = field(default_factory=list)
    folder: Path | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield

    def memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes + 64, dtype=torch.uint8)[:num_bytes]

    def share(self, num_bytes: int) -> tuple[int, bytes]:
        handle, path = mkstemp(dir=self.folder)
        os.truncate(handle, num_bytes)
        os.close(handle)
        return self.open_shared(path.encode()), path.encode()

    def open_shared(self, handle: bytes) -> int:
        with Path(handle.decode()).open("r+b") as file:
            self.mapped.append(mmap(file.fileno(), 0))
        return ctypes.addressof(ctypes.c_uint8.from_buffer(self.mapped[-1]))

    def close_shared(self, address: int) -> None:
        assert address in {ctypes.addressof(ctypes.c_uint8.from_buffer(mapped)) for mapped in self.mapped}

    def unshare(self, address: int) -> None:
        self.close_shared(address)

    def finish(self) -> None:
        self.wait(self.mark())

    def upload(self, source: Bytes) -> Tensor:
        return torch.from_numpy(source.copy())

    def pinned(self, num_bytes: int) -> Bytes:
        return np.zeros(num_bytes, np.uint8)

    def load(self, function: Function, code: bytes) -> Handle:
        assert code.startswith(b"\x7fELF")
        return function

    def copy_in(self, target: Tensor, source: Bytes) -> None:
        self._do(Asked("copy_in", num_bytes=source.size), lambda: target.copy_(torch.from_numpy(source)))

    def copy_out(self, target: Bytes, source: Tensor) -> None:
        def copy() -> None:
            target[:] = np.ctypeslib.as_array((ctypes.c_uint8 * target.size).from_address(source.data_ptr()))

        self._do(Asked("copy_out", num_bytes=target.size), copy)

    def launch(self, function: Handle, grid: Grid, arguments: Sequence[Value]) -> None:
        assert isinstance(function, Function)
        self._do(Asked("launch", function, grid, arguments), lambda: interpret(function, grid, arguments))

    def call(self, kernel: Callable[[], object]) -> None:
        self._do(Asked("call"), kernel)

    def record(self, work: Callable[[], None]) -> Handle:
        self.asked.append(Asked("record"))
        self.recording, asked = [], self.asked
        self.asked = []
        work()
        recorded, self.recording, self.asked = self.recording, None, asked
        return recorded

    def replay(self, recorded: Handle) -> None:
        assert isinstance(recorded, list)
        self.asked.append(Asked("replay"))
        self.pending.extend(recorded)

    def mark(self) -> Handle:
        self.asked.append(Asked("mark"))
        return self.num_done + len(self.pending)

    def wait(self, mark: Handle) -> None:
        assert isinstance(mark, int)
        self.asked.append(Asked("wait"))
        while self.num_done < mark:
            self.pending.popleft()()
            self.num_done += 1

    def _do(self, asked: Asked, work: Callable[[], object]) -> None:
        self.asked.append(asked)
        if self.recording is not None:
            self.recording.append(work)
        else:
            self.pending.append(work)


def interpret(function: Function, grid: Grid, arguments: Sequence[Value]) -> None:
    """Run a launch from what the artifact says of it."""
    module, _, name = function.source.partition(":")
    values: dict[str, Any] = {}
    for (parameter, kind), value in zip(function.signature, arguments, strict=True):
        values[parameter] = at(int(value), kind[1:]) if kind.startswith("*") else value  # type: ignore[arg-type]
    getattr(import_module(module), name)[grid](**values, **function.constants, num_warps=function.warps, num_stages=function.stages)


def at(address: int, dtype: str) -> Tensor:
    """Where a pointer points, as a tensor of one element: what a function reads from there on is its own business."""
    kind = torch_dtype(dtype)
    if not address:
        return torch.empty(0, dtype=kind)
    raw = (ctypes.c_uint8 * kind.itemsize).from_address(address)
    return torch.frombuffer(raw, dtype=kind)
