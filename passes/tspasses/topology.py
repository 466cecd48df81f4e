"""The ranks and the links between them, from TOML: those that come with the compiler (`topologies/`), and a user's own file.

    launch_us = 4.0                  # to start one collective
    hop_us    = 1.0                  # each step of a ring
    gb_per_s  = 360.0                # of a rank, in one direction
    memory_gb_per_s = 3000.0         # of a rank's own memory; left out, ops are taken to cost nothing
    tflops    = 600.0                # of a rank's matmuls; likewise

    [[measured]]                     # any number of these, each with payloads in rising order
    kind  = "all_reduce"
    ranks = 8
    bytes = [16384, 1048576]
    us    = [9.5, 21.0]

Between two measured payloads the time is interpolated on logarithms of both; beyond them, and for what was not measured, the model of
latency and bandwidth stands.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tsc.diagnostics import CompileError, Diagnostic
from tspasses.transitions import COLLECTIVES

FOLDER = Path(__file__).parent / "topologies"
DEFAULT = "h100-nvlink"
_NUMBERS = ("launch_us", "hop_us", "gb_per_s")
_MACHINE = ("memory_gb_per_s", "tflops")


@dataclass(frozen=True)
class Topology:
    """seconds to start a collective, seconds a hop, bytes per second of a rank's links; tables: by kind and ranks, payload bytes and
    seconds. memory_bytes_per_second and flops: of a rank, in the model's element type."""

    name: str
    launch_seconds: float
    hop_seconds: float
    bytes_per_second: float
    tables: Mapping[tuple[str, int], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    memory_bytes_per_second: float = math.inf
    flops: float = math.inf

    def measured(self, kind: str, ranks: int, payload_bytes: float) -> float | None:
        """Seconds, from the measurements on both sides of this payload; None where there are none."""
        points = self.tables.get((kind, ranks), ())
        at = bisect_left(points, (payload_bytes, 0.0))
        if at < len(points) and points[at][0] == payload_bytes:
            return points[at][1]
        if not 0 < at < len(points):
            return None
        (x0, y0), (x1, y1) = points[at - 1], points[at]
        part = math.log(payload_bytes / x0) / math.log(x1 / x0)
        return math.exp(math.log(y0) + part * math.log(y1 / y0))


def known() -> list[str]:
    """The names of those that come with the compiler."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


@cache
def topology(name: str) -> Topology:
    """One of the known ones, or a file whose name ends in .toml. Raises CompileError."""
    import tomllib  # only plans need it

    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in known():
        raise _error(name, f"there is none of this name; there are {', '.join(known())}, or give a .toml file")
    try:
        return _read(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise _error(name, f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError) as error:  # tomllib's and UnicodeDecodeError are ValueErrors
        raise _error(name, str(error)) from None


def _read(name: str, given: Mapping[str, Any]) -> Topology:
    unknown = set(given) - {*_NUMBERS, *_MACHINE, "measured"}
    if unknown:
        raise ValueError(f"`{min(unknown)}` is none of {', '.join((*_NUMBERS, *_MACHINE, 'measured'))}")
    launch, hop, speed = (_positive(given, key) for key in _NUMBERS)
    tables = {}
    rows = given.get("measured", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("`measured` is a list of tables: write [[measured]]")
    for row in rows:
        kind, ranks = row.get("kind"), row.get("ranks")
        if kind not in COLLECTIVES or not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 2:
            raise ValueError(f"a measurement is of one of {', '.join(COLLECTIVES)} on 2 or more ranks, not of {kind!r} on {ranks!r}")
        tables[kind, ranks] = _points(row, f"{kind} on {ranks} ranks")
    memory, flops = (_positive(given, key) if key in given else math.inf for key in _MACHINE)
    return Topology(name, launch * 1e-6, hop * 1e-6, speed * 1e9, tables, memory * 1e9, flops * 1e12)


def _positive(given: Mapping[str, Any], key: str) -> float:
    value = given.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"`{key}` is a number above 0, and this is {value!r}")
    return float(value)


def _points(row: Mapping[str, Any], what: str) -> tuple[tuple[float, float], ...]:
    sizes, times = row.get("bytes"), row.get("us")
    if not (isinstance(sizes, list) and isinstance(times, list) and len(sizes) == len(times)):
        sizes, times = [None], []
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < math.inf for n in [*sizes, *times]):
        raise ValueError(f"{what}: `bytes` and `us` are lists of equally many numbers above 0")
    if sizes != sorted(set(sizes)):
        raise ValueError(f"{what}: `bytes` rise from one to the next")
    return tuple((float(b), float(t) * 1e-6) for b, t in zip(sizes, times, strict=True))


def _error(name: str, what: str) -> CompileError:
    return CompileError(Diagnostic("TS0507", f"--topology {name}: {what}"))
