"""Tuning files: what the kernels of calls took on one machine, and whether that says anything here. Imports no torch.

A call has measurements for several sizes of a step, with the threads that a rank has. A kernel serves steps of all sizes, since two would
give a prompt other bits than what follows it. Kernels are compared over the sizes that all of them have, which count alike: half as long in
steps of one makes up for twice as long in another's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Final

import msgspec

from tskernels.cache_folder import cache_folder
from tskernels.registry import Call
from tskernels.target import parse_target

FORMAT: Final = 1
MOST_TOKENS: Final = 65_536
"""Of a step that is measured: more than a step has, and a bound to the memory that its operands take."""
_AGAIN: Final = "measure again with `tsc tune`"

Count = Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)]
Taken = Annotated[float, msgspec.Meta(ge=1e-12, le=1e9)]
"""No call takes less or more; of what is between, means and ratios can be computed."""
Seconds = dict[str, dict[Count, Taken]]
"""By kernel, then by the tokens of a step."""


class TuningError(Exception):
    """A tuning file that can not be used; one line that names it and says how to mend it, whatever the file holds."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.splitlines()))


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A processor, what it can do, and how many of its cores this process may use."""

    processor: str
    target: str
    cores: int

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.target}"

    @property
    def id(self) -> str:
        """Short enough for a file's name."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:12]


class Versions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kernels: a digest of all that defines them."""

    torch: str
    kernels: str

    def __str__(self) -> str:
        return f"kernels {self.kernels} with torch {self.torch}"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call: str
    threads: Count
    seconds: Seconds


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    machine: Machine
    versions: Versions
    calls: list[_Entry]


class _FormatMark(msgspec.Struct):
    """Of any format, so that another one is told before what it has."""

    format: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of calls with so many threads: `Measurements` of the registry."""

    tuning: Tuning
    threads: int

    def seconds(self, call: Call, kernel: str) -> Mapping[int, float]:
        """By the tokens of a step; none where it was not measured."""
        return self.tuning.calls.get((name_of(call), self.threads), {}).get(kernel, {})


@dataclass(slots=True)
class Tuning:
    """calls: by name and threads; digest: SHA-256 of the file that it was read from, in hexadecimal."""

    machine: Machine
    versions: Versions
    calls: dict[tuple[str, int], Seconds] = field(default_factory=dict)
    digest: str = ""

    @classmethod
    def here(cls) -> Tuning:
        """Without measurements yet."""
        return cls(this_machine(), these_versions())

    def of(self, threads: int) -> Measured:
        return Measured(self, threads)

    def add(self, call: Call, threads: int, kernel: str, tokens: int, seconds: float) -> None:
        """Put down a measurement, in place of an older one."""
        self.calls.setdefault((name_of(call), threads), {}).setdefault(kernel, {})[tokens] = float(f"{seconds:.4g}")

    def unlike_here(self) -> str | None:
        """Why it says nothing about this machine; None where it does."""
        if self.machine != this_machine():
            return f"was measured on another machine ({self.machine}; this is {this_machine()})"
        if self.versions != these_versions():
            return f"was measured with other kernels ({self.versions}; these are {these_versions()})"
        return None

    def write(self, path: Path) -> None:
        """The file has the old measurements or the new ones, never a part. Raises OSError."""
        entries = [_Entry(call, threads, _sorted(seconds)) for (call, threads), seconds in sorted(self.calls.items())]
        text = msgspec.json.format(msgspec.json.encode(_File(FORMAT, self.machine, self.versions, entries)), indent=1)
        with _beside(path) as temporary:
            temporary.write_bytes(text + b"\n")
            temporary.replace(path)


def try_to_write(path: Path) -> None:
    """Raise the OSError that a write would, before there is anything to write; the file stays as it is."""
    with _beside(path) as temporary:
        temporary.touch()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for a file in the same folder, which is made where there is none; what is left there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sorted(seconds: Seconds) -> Seconds:
    return {kernel: dict(sorted(found.items())) for kernel, found in sorted(seconds.items())}


def read_tuning(path: Path) -> Tuning:
    """A file that was measured here. Raises TuningError."""
    try:
        text = path.read_bytes()
        found = msgspec.json.decode(text, type=_FormatMark).format
        if found != FORMAT:
            raise TuningError(f"{path}: is of format {found}, this is for format {FORMAT}; {_AGAIN}")
        file = msgspec.json.decode(text, type=_File)
    except OSError as error:
        raise TuningError(f"{path}: can not be read ({error.strerror}); give a file that `tsc tune` has written") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TuningError(f"{path}: is no tuning file ({error}); {_AGAIN}") from None
    calls = {(entry.call, entry.threads): entry.seconds for entry in file.calls}
    tuning = Tuning(file.machine, file.versions, calls, hashlib.sha256(text).hexdigest())
    reason = tuning.unlike_here()
    if reason is not None:
        raise TuningError(f"{path}: {reason}; {_AGAIN}")
    return tuning


def default_path() -> Path:
    """Where this machine's measurements are kept, whether there are any or not."""
    return cache_folder() / "tuning" / f"{this_machine().id}.json"


def threads_of_rank(ranks: int) -> int:
    """How many threads a rank computes with where the ranks share one machine."""
    return max(1, this_machine().cores // ranks)


def name_of(call: Call) -> str:
    """The same for the same call, whatever the order of its attributes."""
    return str(Call(call.op, call.operands, dict(sorted(call.attributes.items()))))


@cache
def this_machine() -> Machine:
    """Where this process runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(_processor(), str(parse_target("cpu")), cores)


@cache
def these_versions() -> Versions:
    """Of the kernels that run here."""
    spec, native = importlib.util.find_spec("tskernels"), importlib.util.find_spec("tskernels._cpu")
    assert spec is not None
    assert spec.origin is not None
    sources = sorted(Path(spec.origin).parent.glob("*.py"))
    compiled = [Path(native.origin)] if native is not None and native.origin is not None else []
    return Versions(importlib.metadata.version("torch"), _digest([*sources, *compiled])[:12])


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines() if cpuinfo.exists() else []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()
