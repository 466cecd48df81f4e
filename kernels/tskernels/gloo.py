"""Ranks as processes over torch.distributed: its gloo, and where tensors lie on GPUs its NCCL.

They only move bytes here; sums are made by the communicator in rank order, since their own order depends on where an element
lies in the buffer, and gloo does not add bf16 in f32.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, Literal

import torch
import torch.distributed as distributed
from torch import Tensor

from tskernels.communicator import MeshCommunicator, num_ranks
from tskernels.mesh_axes import group_members

Backend = Literal["gloo", "nccl"]
_TIMEOUT: Final = timedelta(minutes=10)


def join(ranks: int, rank: int, init_method: str, *, timeout: timedelta = _TIMEOUT) -> None:
    """Make the default process group (`file://PATH`, `tcp://HOST:PORT` or `env://`). Blocks until all ranks are there."""
    distributed.init_process_group("gloo", init_method=init_method, rank=rank, world_size=ranks, timeout=timeout)


def mesh(sizes: Mapping[str, int], backend: Backend = "gloo") -> MeshCommunicator:
    """This rank's mesh over the ranks of the default process group. Every rank must call it, with equal sizes. backend: carries tensors."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if world != num_ranks(sizes):
        raise ValueError(f"the mesh has {num_ranks(sizes)} ranks, the process group {world}")
    groups = _create_groups(sizes, world, backend)

    def exchange(members: tuple[int, ...]) -> _Exchange:
        return _Exchange(groups[frozenset(members)], members, rank)

    return MeshCommunicator(sizes, rank, exchange)


def disconnect() -> None:
    """Leave the process group, if one was joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _create_groups(sizes: Mapping[str, int], world: int, backend: Backend) -> dict[frozenset[int], distributed.ProcessGroup]:
    # Making a group is itself collective: every rank makes all of them, its own or not, in one order.
    wide = [name for name, size in sizes.items() if size > 1]
    groups: dict[frozenset[int], distributed.ProcessGroup] = {}
    for count in range(1, len(wide) + 1):
        for names in itertools.combinations(wide, count):
            for rank in range(world):
                members = frozenset(group_members(sizes, rank, "*".join(names)))
                if members not in groups:
                    group = distributed.new_group(sorted(members), backend=backend)
                    groups[members] = group
    return groups


class _Exchange:
    """Bytes between the members of a group, which torch knows by ascending rank and the mesh axis perhaps in another order."""

    def __init__(self, group: distributed.ProcessGroup, members: tuple[int, ...], rank: int) -> None:
        self._group = group
        ascending = sorted(members)
        self._place = [ascending.index(member) for member in members]
        self._position = members.index(rank)

    def gather(self, x: Tensor) -> list[Tensor]:
        sent = _bytes_of(x)
        arrived = [torch.empty_like(sent) for _ in self._place]
        distributed.all_gather(arrived, sent, group=self._group)
        return [_from_bytes(arrived[place], x) for place in self._place]

    def swap(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        mine = blocks[self._position]
        sent = torch.empty(len(blocks), mine.nbytes, dtype=torch.uint8, device=mine.device)
        for place, block in zip(self._place, blocks, strict=True):
            sent[place] = _bytes_of(block)
        arrived = torch.empty_like(sent)
        distributed.all_to_all_single(arrived, sent, group=self._group)
        return [_from_bytes(arrived[place], mine) for place in self._place]


def _bytes_of(x: Tensor) -> Tensor:
    # Bytes: gloo refuses some element types that it need not understand.
    return x.contiguous().view(-1).view(torch.uint8)


def _from_bytes(data: Tensor, like: Tensor) -> Tensor:
    return data.view(like.dtype).view(like.shape)
