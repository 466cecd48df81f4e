"""A rank's weights, memory mapped: a tensor is read from disk when a kernel first touches it, and shared between processes."""

from __future__ import annotations

import ctypes
import mmap
from math import prod
from pathlib import Path

import msgspec

from tskernels.dtypes import size_bytes
from tskernels.layouts import SCREEN
from tsrun.errors import ArtifactError
from tsrun.memory import ask_for_huge_pages, ask_for_small_pages
from tsrun.places import Place, fixed

_DTYPES = {"F32": "f32", "BF16": "bf16", "F16": "f16", "F64": "f64", "I32": "i32", "I64": "i64", "U8": "u8"}
_LENGTH_BYTES = 8
_LARGEST_HEADER = 1 << 27


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Weights:
    """Tensors by name, in the pages of the file. screen: of a table with a screen only a few rows will be read."""

    def __init__(self, file: Path, *, screen: bool = True) -> None:
        self._file = file
        try:
            with file.open("rb") as stream:
                size = file.stat().st_size
                # Pages that nobody writes stay shared, whatever the mapping would allow; torch takes no memory that it may not write.
                self._map = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) if size else None
            if self._map is not None:
                ask_for_huge_pages(self._map)
        except OSError as error:
            raise self._refuse(f"can not be read ({error.strerror})") from None
        if self._map is None or size < _LENGTH_BYTES:
            raise self._refuse("can not be read (it is empty)")
        length = int.from_bytes(self._map[:_LENGTH_BYTES], "little")
        if length > min(size - _LENGTH_BYTES, _LARGEST_HEADER):
            raise self._refuse("can not be read (its header is longer than itself)")
        try:
            header = msgspec.json.decode(self._map[_LENGTH_BYTES : _LENGTH_BYTES + length], type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            self._tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items()}
        except msgspec.DecodeError as error:
            raise self._refuse(f"can not be read ({error})") from None
        self._begin = _LENGTH_BYTES + length
        self._view = memoryview(self._map)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for name, tensor in self._tensors.items():
            begin, end = tensor.data_offsets
            known = _DTYPES.get(tensor.dtype)
            fits = 0 <= begin <= end <= size - self._begin and all(length >= 0 for length in tensor.shape)
            if known is None or not fits or end - begin != prod(tensor.shape) * size_bytes(known):
                raise self._refuse(f"says of tensor {name!r} what can not be: {tensor.dtype} {tensor.shape} in bytes {begin} to {end}")
            if screen and f"{name}#{SCREEN}" in self._tensors:  # huge pages would make all of it resident
                ask_for_small_pages(self._map, self._begin + begin, self._begin + end)

    def buffer(self, name: str, dtype: str) -> memoryview:
        """The bytes of a tensor, which must be of that type."""
        place = self.place(name, dtype, None)
        assert isinstance(place.buffer, memoryview)
        return place.buffer

    def place(self, name: str, dtype: str | None, shape: tuple[int, ...] | None) -> Place:
        """The tensor, which must be of the type and shape that the program states, where it states them."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._refuse(f"holds no tensor {name!r}, which the program names")
        stored = _DTYPES[tensor.dtype]
        if (dtype is not None and stored != dtype) or (shape is not None and tuple(tensor.shape) != shape):
            wanted = [*([] if dtype is None else [dtype]), "of any shape" if shape is None else str(list(shape))]
            raise self._refuse(f"tensor {name!r} is {stored} {tensor.shape}, the program wants {' '.join(wanted)}")
        begin, end = (self._begin + offset for offset in tensor.data_offsets)
        return fixed(self._address + begin, stored, tensor.shape, self._view[begin:end], name)

    def _refuse(self, what: str) -> ArtifactError:
        return ArtifactError(str(self._file), what, "compile the artifact again")
