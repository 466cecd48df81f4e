"""Who used the processor during a turn: the contender whose turn it was, those that had to hold still, and everybody else."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_OTHERS = 0.15  # cores that others may use before a turn counts as disturbed
_LOOK_SECONDS = 0.5
_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Noise:
    """Cores in use, on average: `idle` by contenders out of turn (one that spins shows here), `others` by the rest of the machine."""

    idle: float
    others: float


class Watch:
    """From its making until `noise`. Without /proc it sees nothing."""

    def __init__(self, active: Sequence[int], idle: Sequence[int]) -> None:
        self.active, self.idle = active, idle
        self.start = self._read()

    def noise(self) -> Noise:
        wall, everybody, active, idle = (after - before for before, after in zip(self.start, self._read(), strict=True))
        return Noise(idle=idle / wall, others=max(0.0, everybody - active - idle) / wall)

    def _read(self) -> tuple[float, float, float, float]:
        active, idle = (sum(map(_process_seconds, pids)) for pids in (self.active, self.idle))
        return time.monotonic(), _machine_seconds(), active, idle


def wait_for_quiet(patience_seconds: float) -> None:
    """Until half a second passes in which nobody uses the machine, and no longer than so many seconds."""
    until = time.monotonic() + patience_seconds
    while time.monotonic() < until:
        watch = Watch([], [])
        time.sleep(_LOOK_SECONDS)
        if watch.noise().others < MOST_OTHERS:
            return


def _process_seconds(pid: int) -> float:
    """Of all its threads; a worker starts no other processes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK


def _machine_seconds() -> float:
    """User, nice, system, interrupts, and what a hypervisor took away."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, hard, soft, stolen = fields
    return (user + nice + system + hard + soft + stolen) * _TICK
