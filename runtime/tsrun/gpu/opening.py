"""The GPU that an artifact is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tskernels.target import ARCHITECTURES
from tsrun.errors import MachineError

if TYPE_CHECKING:
    from tsrun.gpu.device import Device

_CACHE_SHARE: Final = 4, 5
"""Of what weights leave of a device's memory; the rest is for what steps compute."""


def device_for(target: str, chosen: str | None, rank: int) -> Device | None:
    """None where an artifact for `target` runs on this CPU, which `chosen` may say. Raises MachineError where its GPU is not here."""
    if chosen == "cpu" or target not in ARCHITECTURES:
        return None
    from tsrun.gpu.cuda import CudaDevice, why_not

    why = why_not(target, rank)
    if why is not None:
        raise MachineError(target, f"the artifact is for such a GPU, and {why}", "run it on this CPU with --target cpu")
    return CudaDevice(rank)


def cache_memory(device: Device, weights: Path) -> int:
    """Bytes for caches on a device that is to have these weights."""
    left = device.free_bytes - weights.stat().st_size
    return max(0, left) * _CACHE_SHARE[0] // _CACHE_SHARE[1]
