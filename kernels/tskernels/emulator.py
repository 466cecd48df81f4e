"""Runs PTX on the CPU and finds what is wrong with it: races, missing waits and fences, deadlocks, reads of nothing.

A test instrument: kernels/emulator/README.md says what it runs and what it finds.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tskernels import _ptx

Array = NDArray[Any]


class EmulatorFault(Exception):
    """A kernel does what it must not. `kind` names the sort of fault, `line` its place in the PTX, 0 where it has none."""

    def __init__(self, kind: str, line: int, what: str, source: str) -> None:
        self.kind, self.line = kind, line
        where = f"line {line} (`{source}`)" if line else "launch"
        super().__init__(f"{where}: {kind}: {what}")


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A tensor map as cuTensorMapEncodeTiled makes it, but with dimensions in numpy's order, the innermost last.

    `box` is elements of each dimension; `swizzle` the bytes of its span, 0 for none, at least the box's innermost bytes. What lies
    beyond the array is filled with zeros, or with NaNs. The array may be a view with strides; its innermost dimension is contiguous.
    """

    array: Array
    box: tuple[int, ...]
    swizzle: Literal[0, 32, 64, 128] = 128
    fill_nan: bool = False

    def __post_init__(self) -> None:
        array = self.array
        inner = self.box[-1] * array.itemsize
        if array.ndim != len(self.box) or not 1 <= array.ndim <= 5:
            raise ValueError(f"a box of {len(self.box)} dimensions for an array of {array.ndim}; give one each, 1 to 5")
        if array.strides[-1] != array.itemsize or any(s % 16 or s <= 0 for s in array.strides[:-1]):
            raise ValueError(f"strides {array.strides}: the innermost must be contiguous, the others multiples of 16 bytes")
        if inner % 16 or not all(1 <= b <= 256 for b in self.box):
            raise ValueError(f"box {self.box}: 1 to 256 elements a dimension, and a multiple of 16 bytes in the innermost")
        if self.swizzle and inner > self.swizzle:
            raise ValueError(f"box {self.box} is {inner} bytes wide, a swizzle of {self.swizzle} bytes takes no more than that")


@dataclass(frozen=True, slots=True)
class Uninitialized:
    """An array whose contents are nothing yet: to read of it what the kernel has not written is a fault."""

    array: Array


@dataclass(frozen=True, slots=True)
class Struct:
    """A parameter passed by value as these bytes."""

    data: bytes


Argument = Array | int | float | TensorMap | Uninitialized | Struct


@dataclass(frozen=True, slots=True)
class Report:
    """What ran: instructions of warps, products of tensor cores (each warp's of a wgmma), asynchronous copies."""

    instructions: int
    products: int
    copies: int


def launch(
    ptx: str,
    kernel: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Argument],
    *,
    cluster: int | Sequence[int] = 1,
    shared_bytes: int = 0,
    strict: bool = True,
    max_instructions: int = 1 << 32,
    unfinished: Sequence[Array] | None = None,
) -> Report:
    """Run a kernel of a PTX text over a grid of blocks; arrays are written in place.

    Arguments in the kernel's order: numpy arrays as pointers (bf16 as uint16, fp8 as uint8; one that is not writeable may not be
    written), integers, floats (f32, or f64 where the parameter is that wide), `TensorMap`s by value. `grid`, `block` and `cluster` are
    x, y, z; the PTX's own cluster size holds where it has one. `shared_bytes` is the dynamic shared memory. Not `strict` are kernels
    that rely on ptxas for what the ISA asks: Triton has no tcgen05.fence, no fence after mbarrier.init and none after cp.async.
    unfinished: makes it a dependent launch (programmatic dependent launch), and says what of the arguments' memory, contiguous, the launch
    before may still read and write until griddepcontrol.wait, for which every thread has to come.
    Raises `EmulatorFault` at the first fault.
    """
    arrays: list[tuple[Array, bool, bool]] = []
    places: dict[int, int] = {}

    def place(array: Array, initialized: bool) -> tuple[int, int]:
        whole = _whole(array)
        start = whole.__array_interface__["data"][0]
        if start not in places:
            places[start] = len(arrays)
            arrays.append((whole, bool(whole.flags.writeable and array.flags.writeable), initialized))
        return places[start], array.__array_interface__["data"][0] - start

    def encode(argument: Argument) -> tuple[Any, ...]:
        match argument:
            case TensorMap(array, box, swizzle, fill_nan):
                sizes, strides = list(array.shape[::-1]), list(array.strides[::-1])
                return ("map", *place(array, True), array.itemsize, sizes, strides, list(box[::-1]), swizzle, fill_nan)
            case Uninitialized(array):
                return ("pointer", *place(array, False))
            case Struct(data):
                return ("bytes", data)
            case bool() | int() | np.integer():
                return ("bytes", struct.pack("<q", int(argument)) if argument < 1 << 63 else struct.pack("<Q", int(argument)))
            case np.float64():
                return ("bytes", struct.pack("<d", argument))
            case float() | np.floating():
                return ("bytes", struct.pack("<f", argument))
            case _:
                return ("pointer", *place(argument, True))

    encoded = [encode(a) for a in args]
    left = [(*place(array, True), array.nbytes) for array in unfinished or ()]
    shape = _three(grid), _three(block), _three(cluster)
    try:
        return Report(
            **_ptx.run(ptx, kernel, *shape, shared_bytes, strict, max_instructions, arrays, encoded, unfinished is not None, left)
        )
    except _ptx.Fault as error:
        kind, line, what = error.args
        source = ptx.splitlines()[line - 1].strip() if line else ""
        raise EmulatorFault(kind, line, what, source if len(source) <= 100 else source[:97] + "...") from None


def _three(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    given = [sizes] if isinstance(sizes, int) else list(sizes)
    x, y, z = [*given, 1, 1, 1][:3]
    return x, y, z


def _whole(array: Array) -> Array:
    """The array whose memory a view shows, so that two views of one are the same memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if not array.flags.c_contiguous:
        raise ValueError(f"strides {array.strides}: pass a view of a contiguous array")
    return array
