"""Memory on the GPUs of one host that the ranks of an axis write to, each into all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch.distributed as dist
from torch import Tensor

from tskernels.gpu.peers import memory_bytes
from tskernels.mesh_axes import group_members
from tsrun.errors import MachineError
from tsrun.gpu.device import Device

_HOST: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """Of the ranks of an axis. table: i64 on the device, the address of each rank's memory there; rank: this one's place among them."""

    table: Tensor
    rank: int
    ranks: int


class PeerMemories:
    """Of all axes that collectives name. `by_axis` has none where a rank can not reach another's memory: on another host, or without a
    link between their devices. Every rank of the process group must make them, with equal axes."""

    def __init__(self, device: Device, sizes: Mapping[str, int], rank: int, axes: Sequence[str]) -> None:
        self._device = device
        self._opened: list[int] = []
        members = {axis: group_members(sizes, rank, axis) for axis in axes}
        shared = {axis: device.share(memory_bytes(len(ranks))) for axis, ranks in members.items() if len(ranks) > 1}
        self._own = [address for address, _ in shared.values()]
        theirs = _told({axis: handle for axis, (_, handle) in shared.items()})
        found: dict[str, PeerMemory] = {}
        try:
            if len({host for host, _ in theirs}) > 1:
                raise MachineError("ranks", "they are on several hosts")
            for axis, (address, _) in shared.items():
                ranks = members[axis]
                addresses = [address if r == rank else self._open(theirs[r][1][axis]) for r in ranks]
                with device.entered():
                    table = device.upload(np.array(addresses, np.int64).view(np.uint8))
                found[axis] = PeerMemory(table, ranks.index(rank), len(ranks))
        except MachineError:
            found = {}
        everyone = [0] * len(theirs)
        dist.all_gather_object(everyone, len(found))
        self.by_axis: Mapping[str, PeerMemory] = found if all(count == len(shared) for count in everyone) else {}

    def close(self) -> None:
        """Give the memory back, when no other rank is there any more."""
        for address in self._opened:
            self._device.close_shared(address)
        for address in self._own:
            self._device.unshare(address)
        self._opened, self._own, self.by_axis = [], [], {}

    def _open(self, handle: bytes) -> int:
        self._opened.append(self._device.open_shared(handle))
        return self._opened[-1]


def _told(handles: Mapping[str, bytes]) -> list[tuple[str, Mapping[str, bytes]]]:
    """Of each rank its host, and its handles by axis."""
    host = _HOST.read_text() if _HOST.exists() else ""
    found: list[tuple[str, Mapping[str, bytes]]] = [("", {})] * dist.get_world_size()
    dist.all_gather_object(found, (host, dict(handles)))
    return found
