"""Ranks as processes of one host that share memory.

C++ programs meet in it on their own (kernels/csrc/collectives.cpp); for kernels of torch tensors it is an exchange like gloo's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from tskernels import _cpu
from tskernels.communicator import MeshCommunicator
from tskernels.mesh_axes import group_members
from tskernels.simd_kernels import operand

_PATIENT: Final = 20000
_CROWDED: Final = 200
"""How often who waits looks before it sleeps: about a millisecond where each thread has a processor, and a moment where the one that is
waited for may need this one."""


class SharedMemory:
    """This rank's place in a segment that the ranks of a mesh share, and its groups in it. Rank 0 makes it, then the others open it by
    its name, and then the name goes (`unlink`).

    axes: those that collectives name, on all ranks the same; threads: of each rank; timeout_seconds: how long to wait for ranks that live
    and do not come. OSError where there is no such memory.
    """

    def __init__(
        self, sizes: Mapping[str, int], rank: int, axes: Sequence[str], name: str, *, threads: int, timeout_seconds: float
    ) -> None:
        self._sizes, self._rank, self._timeout_seconds = dict(sizes), rank, timeout_seconds
        ranks = len(group_members(sizes, rank, "*".join(sizes)))
        self.spins = _PATIENT if ranks * threads <= len(os.sched_getaffinity(0)) else _CROWDED
        # Axes that join the same ranks in the same order do so on every rank: they are one group, in one area.
        found = dict.fromkeys(group_members(sizes, rank, axis) for axis in axes)
        self._areas = {members: area for area, members in enumerate(found)}
        self._name = name
        self._groups: dict[tuple[int, ...], _cpu.RankGroup] = {}
        if rank == 0:
            self._segment = _cpu.Segment.create(name, ranks, len(self._areas))
        else:
            self._segment = _cpu.Segment.open(name, ranks, len(self._areas), rank)

    def group(self, axis: str) -> _cpu.RankGroup:
        """The ranks of one of the axes."""
        return self._group_of(group_members(self._sizes, self._rank, axis))

    def mesh(self) -> MeshCommunicator:
        """This rank's mesh, for collectives of torch tensors."""
        return MeshCommunicator(self._sizes, self._rank, lambda members: _Exchange(self._group_of(members)))

    def unlink(self) -> None:
        """Take the segment's name away, when all ranks have it open."""
        _cpu.Segment.unlink(self._name)

    def leave(self) -> None:
        """From now on collectives fail, on this rank at once, and on those that wait for it soon."""
        self._segment.leave()

    def _group_of(self, members: tuple[int, ...]) -> _cpu.RankGroup:
        if members not in self._groups:
            self._groups[members] = self._new_group(members)
        return self._groups[members]

    def _new_group(self, members: tuple[int, ...]) -> _cpu.RankGroup:
        if len(members) == 1:
            return _cpu.RankGroup()
        return _cpu.RankGroup(self._segment, self._areas[members], members, members.index(self._rank), self.spins, self._timeout_seconds)


class _Exchange:
    """Bytes between the members of a group."""

    def __init__(self, group: _cpu.RankGroup) -> None:
        self._group = group
        self._team = _cpu.Team(1)

    def gather(self, x: Tensor) -> list[Tensor]:
        return list(self._run("all_gather", x.contiguous()[None], [0.0]))

    def swap(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        return list(self._run("all_to_all", torch.stack(list(blocks)), [0.0, 0.0]))

    def _run(self, kernel: str, x: Tensor, numbers: Sequence[float]) -> Tensor:
        """Of `x [1 or members, ...]`, whatever its elements, to what each member sent here, `[members, ...]`."""
        sent = x.view(x.shape[0], -1).view(torch.uint8)
        arrived = torch.empty(self._group.size, sent.shape[1], dtype=torch.uint8)
        _cpu.call(self._team, kernel, [operand(sent)], operand(arrived), numbers, [], self._group)
        return arrived.view(x.dtype).view(-1, *x.shape[1:])
