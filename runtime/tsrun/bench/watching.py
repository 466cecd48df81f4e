"""What measuring takes itself, and what the machine takes meanwhile: the client's processor time and lateness, and energy."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsrun.bench.records import ClientCost
from tsrun.bench.summary import quantile

_EVERY_SECONDS = 0.02
_RAPL = Path("/sys/class/powercap")


@dataclass(slots=True)
class Watch:
    """Of one run. Sleeps again and again, and notes how late it wakes: that late pieces are looked at."""

    began: float = 0.0
    _cpu: float = 0.0
    _late: list[float] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None
    _energy: Energy | None = None

    async def __aenter__(self) -> Watch:
        self._energy = Energy()
        self._cpu, self.began = _cpu_seconds(), time.perf_counter()
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(_EVERY_SECONDS)
            self._late.append(1000 * max(0.0, time.perf_counter() - asleep - _EVERY_SECONDS))

    def cost(self, seconds: float) -> ClientCost:
        late = [round(quantile(self._late, part) or 0.0, 3) for part in (0.5, 0.99, 1.0)]
        return ClientCost(round((_cpu_seconds() - self._cpu) / seconds, 4), *late)

    def joules(self) -> float | None:
        assert self._energy is not None
        return self._energy.since()


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


class Energy:
    """Since it was made: of NVIDIA's devices by NVML, otherwise of the processors by RAPL, where it may be read."""

    def __init__(self) -> None:
        self._devices = _nvml()
        self._counters = [] if self._devices else sorted(_RAPL.glob("intel-rapl:[0-9]"))
        self._before = self._read()

    def since(self) -> float | None:
        now = self._read()
        if not now or len(now) != len(self._before):
            return None
        # A counter of RAPL starts over at its range.
        return sum(
            after - before if after >= before else after - before + most
            for (before, most), (after, _) in zip(self._before, now, strict=True)
        )

    def _read(self) -> list[tuple[float, float]]:
        """Joules so far of each, and where it starts over."""
        if self._devices:
            module, handles = self._devices
            return [(module.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0) for handle in handles]
        try:
            return [(_micro(folder / "energy_uj"), _micro(folder / "max_energy_range_uj")) for folder in self._counters]
        except (OSError, ValueError):
            return []


def _micro(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _nvml() -> tuple[Any, list[Any]] | None:
    try:
        import pynvml  # type: ignore[import-not-found, unused-ignore]

        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # neither the package nor a device is needed
        return None
