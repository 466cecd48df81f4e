"""The header of a GGUF file: metadata and the table of tensors. Does not: read weights, import numpy or gguf."""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tsc.checkpoint.errors import DAMAGED_GGUF, NOT_A_CHECKPOINT, UNSUPPORTED_LAYOUT, failure

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the table. `shape` is in torch's order; `offset` counts bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class GgufHeader:
    """Metadata by key and tensors by GGUF name. Arrays are decoded when asked for: a vocabulary has 262144 strings.

    Raises CompileError when the file is not a GGUF, ends inside its header, or is of a kind that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size < 24 or (file.seek(0), file.read(4))[1] != b"GGUF":
                    raise failure(DAMAGED_GGUF, path, f"is not a GGUF file ({self.size} bytes, no `GGUF` mark at its start)")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise failure(NOT_A_CHECKPOINT, path, f"cannot be read: {error.strerror}") from None
        try:
            self._parse()
        except (struct.error, IndexError):
            raise failure(
                DAMAGED_GGUF, path, f"is truncated: the header goes on after the file's last byte ({self.size} bytes)", "download it again"
            ) from None
        except UnicodeDecodeError:
            raise failure(DAMAGED_GGUF, path, "is damaged: a name in its header is not UTF-8", "download it again") from None

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value: str, int, float, bool or a list of them."""
        value = self._values.get(key, default)
        return value.decode() if isinstance(value, _StringArray) else value.tolist() if isinstance(value, array) else value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def length(self, key: str) -> int:
        """How many entries an array has, without decoding it; 0 when it is absent."""
        value = self._values.get(key)
        return 0 if value is None else len(value)

    @cached_property
    def architecture(self) -> str:
        return str(self.get("general.architecture", ""))

    def own(self, key: str, default: Any = None) -> Any:
        """The value of `key` under the architecture's prefix: `own("block_count")` is `llama.block_count`."""
        return self.get(f"{self.architecture}.{key}", default)

    def _parse(self) -> None:
        version, num_tensors, num_values = struct.unpack_from("<IQQ", self._data, 4)
        if version not in (2, 3):
            byte_swapped = version & 0xFFFF == 0
            what = "is a big-endian GGUF" if byte_swapped else f"is GGUF version {version}; versions 2 and 3 are read"
            raise failure(UNSUPPORTED_LAYOUT, self.path, what, "convert it again with a current llama.cpp")
        position = 24
        self._values: dict[str, Any] = {}
        for _ in range(num_values):
            key, position = self._string(position)
            (kind,) = struct.unpack_from("<I", self._data, position)
            self._values[key], position = self._value(kind, position + 4)
        rows = []
        for _ in range(num_tensors):
            name, position = self._string(position)
            (rank,) = struct.unpack_from("<I", self._data, position)
            *sizes, kind, offset = struct.unpack_from(f"<{rank}QIQ", self._data, position + 4)
            position += 4 + 8 * rank + 12
            rows.append((name, tuple(reversed(sizes)), kind, offset))
        alignment = int(self.get("general.alignment", _DEFAULT_ALIGNMENT)) or _DEFAULT_ALIGNMENT
        start = -(-position // alignment) * alignment
        self.tensors = {name: GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in rows}
        if (parts := int(self.get("split.count", 1) or 1)) > 1:
            raise failure(UNSUPPORTED_LAYOUT, self.path, f"is one of {parts} parts of a split GGUF", "join them: llama-gguf-split --merge")

    def _string(self, position: int) -> tuple[str, int]:
        (length,) = _LENGTH.unpack_from(self._data, position)
        end = position + 8 + length
        if end > self.size:
            raise IndexError
        return self._data[position + 8 : end].decode("utf-8"), end

    def _value(self, kind: int, position: int) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(position)
        if kind == _ARRAY:
            return self._array(position)
        if kind not in _SCALARS:
            raise failure(DAMAGED_GGUF, self.path, f"is damaged: its header has a value of unknown type {kind}", "download it again")
        form = struct.Struct("<" + _SCALARS[kind])
        return form.unpack_from(self._data, position)[0], position + form.size

    def _array(self, position: int) -> tuple[Any, int]:
        kind, count = struct.unpack_from("<IQ", self._data, position)
        position += 12
        if kind == _STRING:
            strings = _StringArray(self._data, position, count)
            return strings, strings.end
        if kind not in _SCALARS:
            raise failure(UNSUPPORTED_LAYOUT, self.path, f"has an array of GGUF type {kind} in its header, which is not read")
        code = "B" if _SCALARS[kind] == "?" else _SCALARS[kind]
        end = position + struct.calcsize("<" + code) * count
        if end > self.size:
            raise IndexError
        values = array(code)
        values.frombytes(self._data[position:end])
        return values, end


def shortest(value: float) -> float:
    """The shortest decimal that gives the same f32: 1e-06 for 9.999999974752427e-07, as the model's author wrote it."""
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


class _StringArray:
    """The place of an array of strings. Walks over it once to find its end."""

    def __init__(self, data: mmap.mmap, start: int, count: int) -> None:
        self._data, self._start, self._count = data, start, count
        for _, end in self._walk():
            self.end = end

    end: int

    def __len__(self) -> int:
        return self._count

    def decode(self) -> list[str]:
        # Token texts may hold bytes that are no UTF-8; they never match text, so any replacement serves.
        return [self._data[start:end].decode("utf-8", "replace") for start, end in self._walk()]

    def _walk(self) -> Iterator[tuple[int, int]]:
        self.end = position = self._start
        size, unpack = len(self._data), _LENGTH.unpack_from
        for _ in range(self._count):
            start = position + 8
            position = start + unpack(self._data, position)[0]
            if position > size:
                raise IndexError
            yield start, position
