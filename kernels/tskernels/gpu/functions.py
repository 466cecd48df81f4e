"""What is compiled: a function with its types and constants, and what a compiler made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tskernels.gpu.launch import Coordinate, CudaSource, Launch, Number, Peers, Resources, Scalar, TensorMap, TritonSource
from tskernels.target import Target
from tskernels.toolchain import Compiler, version

_SOURCES: Final = (".py", ".cu", ".cuh", ".h", ".hpp")
MOST_SHARED: Final = {"gfx942": 65_536, "gfx950": 163_840}
"""Bytes of shared memory that a thread block may have, where they are not NVIDIA's."""
_NVIDIA_SHARED: Final = 232_448
MOST_COLUMNS: Final = 512
"""Of tensor memory."""


@dataclass(frozen=True, slots=True)
class Function:
    """A source and all that its machine code depends on beside compiler and target. signature: each parameter's type, in order: `*bf16` an
    address, `i32`, `i64`, `f32`, or `map`, the descriptor of a tensor; multiples: of parameters, what a compiler may rely on."""

    source: TritonSource | CudaSource
    signature: tuple[tuple[str, str], ...]
    multiples: tuple[tuple[str, int], ...]
    constants: tuple[tuple[str, Number | str | bool], ...]
    warps: int
    stages: int
    shared: int
    cluster: int
    dependent: bool

    @property
    def compiler(self) -> Compiler:
        return "triton" if isinstance(self.source, TritonSource) else "nvcc"

    @property
    def name(self) -> str:
        return self.source.function

    def record(self) -> dict[str, object]:
        """As JSON has it: what a program keeps, and a worker is told."""
        source = self.source
        where = f"{source.module}:{source.function}" if isinstance(source, TritonSource) else f"{source.file}:{source.function}"
        found: dict[str, object] = {"compiler": self.compiler, "source": where, "signature": [list(p) for p in self.signature]}
        found |= {"multiples": dict(self.multiples), "constants": dict(self.constants)}
        return found | {n: getattr(self, n) for n in ("warps", "stages", "shared", "cluster", "dependent")}

    def key(self, target: Target) -> str:
        """What identifies its machine code."""
        made = {"sources": _sources_digest(self.source), "version": version(self.compiler), "target": str(target), **self.record()}
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MachineCode:
    """Its bytes, the symbol to launch, threads of a block, and how many addresses follow the parameters, all of them 0."""

    code: bytes
    symbol: str
    threads: int
    trailing: int
    resources: Resources

    def excess(self, target: Target) -> str | None:
        """Why no device could launch it; compilers do not say, they make a function that ends the program."""
        r, most = self.resources, MOST_SHARED.get(str(target), _NVIDIA_SHARED)
        if r.shared > most:
            return f"takes {r.shared:,} bytes of shared memory, of which a block of {target} may have {most:,}"
        if r.tensor_columns > MOST_COLUMNS:
            return f"takes {r.tensor_columns} columns of tensor memory, of which there are {MOST_COLUMNS}"
        return None


def function_of(launch: Launch) -> Function:
    """Raises ValueError where an address has no type."""
    signature, multiples = [], []
    is_triton = isinstance(launch.source, TritonSource)
    for name, argument in launch.arguments.items():
        match argument:
            case Scalar(_, dtype, multiple):
                signature.append((name, dtype))
                if multiple > 1:
                    multiples.append((name, multiple))
            case Coordinate():
                signature.append((name, "i32"))
            case Peers(fact) if fact != "memories":
                signature.append((name, "i32"))
            case TensorMap():
                signature.append((name, "map"))
            case _:
                if is_triton and name not in launch.types:
                    raise ValueError(f"{launch.source.function}: says no type of what lies at `{name}`")
                signature.append((name, f"*{launch.types.get(name, 'u8')}"))
                multiples.append((name, 16))
    facts = (tuple(signature), tuple(multiples), tuple(sorted(launch.constants.items())), launch.warps, launch.stages)
    return Function(launch.source, *facts, launch.shared, launch.cluster, launch.dependent)


def source_file(source: TritonSource | CudaSource) -> Path:
    if isinstance(source, CudaSource):
        return Path(__file__).parent / source.file
    spec = find_spec(source.module)
    assert spec is not None and spec.origin is not None, source.module  # noqa: PT018
    return Path(spec.origin)


def _sources_digest(source: TritonSource | CudaSource) -> str:
    """Of all sources in the source's folder: functions call others."""
    return _folder_digest(source_file(source).parent)


@cache
def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in _SOURCES):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def resources_of(record: Mapping[str, object]) -> Resources:
    """Of JSON that `dataclasses.asdict` made."""
    return Resources(**record)  # type: ignore[arg-type]
