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


def share_peers(device: Device, sizes: Mapping[str, int], rank: int, axes: Sequence[str]) -> Mapping[str, PeerMemory]:
    """By axis; none where a rank can not reach another's memory: on another host, or without a link between their devices.

    Every rank of the process group must call it, with equal axes. The memory is there as long as the process.
    """
    members = {axis: group_members(sizes, rank, axis) for axis in axes}
    own = {axis: device.share(memory_bytes(len(ranks))) for axis, ranks in members.items() if len(ranks) > 1}
    theirs = _told({axis: handle for axis, (_, handle) in own.items()})
    found: dict[str, PeerMemory] = {}
    try:
        if len({host for host, _ in theirs}) > 1:
            raise MachineError("ranks", "they are on several hosts")
        for axis, (address, _) in own.items():
            ranks = members[axis]
            addresses = [address if r == rank else device.open_shared(theirs[r][1][axis]) for r in ranks]
            with device.entered():
                table = device.upload(np.array(addresses, np.int64).view(np.uint8))
            found[axis] = PeerMemory(table, ranks.index(rank), len(ranks))
    except MachineError:
        found = {}
    everyone = [0] * len(theirs)
    dist.all_gather_object(everyone, len(found))
    return found if all(count == len(own) for count in everyone) else {}


def _told(handles: Mapping[str, bytes]) -> list[tuple[str, Mapping[str, bytes]]]:
    """Of each rank its host, and its handles by axis."""
    host = _HOST.read_text() if _HOST.exists() else ""
    found: list[tuple[str, Mapping[str, bytes]]] = [("", {})] * dist.get_world_size()
    dist.all_gather_object(found, (host, dict(handles)))
    return found
