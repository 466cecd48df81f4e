"""What an op must move and compute at a shape, how long a device takes for that at least, and what was measured on one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tskernels.cost import BYTES, FLOPS, GPUS
from tskernels.dtypes import FLOATS, size_bytes
from tskernels.registry import REFERENCE, Call, lookup

_NARROW: Final = ("f8e4m3",)
_RATES: Final = {1: 2.0, 2: 1.0, 4: 0.5, 8: 0.025}
"""Of products, by the bytes of the narrowest floating operand, beside those of bf16: fp8, bf16, tf32; f64 is not for this."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a call can not do without: each operand read once, the result written once; of a cache only what is seen."""

    bytes: float
    flops: float
    element_bytes: int


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds on a device, by its data sheet."""

    memory: float
    arithmetic: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.arithmetic)

    @property
    def bound(self) -> Literal["memory", "arithmetic"]:
        return "memory" if self.memory >= self.arithmetic else "arithmetic"


@dataclass(frozen=True, slots=True)
class Run:
    """A kernel's time on a device, with the date of the run."""

    kernel: str
    device: str
    date: str
    seconds: float


def work(call: Call) -> Work:
    """By the cost of the op's reference."""
    cost = lookup(call.op, REFERENCE).cost
    floats = [size_bytes(o.dtype) for o in call.operands if o.dtype in (*FLOATS, *_NARROW)]
    return Work(cost(call, BYTES), cost(call, FLOPS), min(floats, default=4))


def floor(work: Work, device: str) -> Floor:
    """device: a key of `cost.GPUS`."""
    found = GPUS[device]
    return Floor(work.bytes / found.bytes_per_second, work.flops / (found.flops_per_second * _RATES[work.element_bytes]))


def runs(call: Call, folder: Path) -> Sequence[Run]:
    """Of the call, on any device, the quickest first, from a folder's files `kernels*.json`: each a list of `{"op", "operands":
    ["bf16[16, 64]", ...], "kernel", "device", "date", "seconds"}`."""
    return sorted(_runs(call, folder), key=lambda run: run.seconds)


def _runs(call: Call, folder: Path) -> Iterator[Run]:
    operands = [str(operand) for operand in call.operands]
    for file in sorted(folder.glob("kernels*.json")):
        for record in json.loads(file.read_text()):
            if record["op"] == call.op and record["operands"] == operands:
                yield Run(record["kernel"], record["device"], record["date"], record["seconds"])
