"""How a rank reaches the ranks of a mesh axis, and which mesh a thread is on.

An axis is the name of a mesh axis or several joined by `*`, major to minor. Reductions add in rank order with f32 inside, so
every rank of a group ends with the same bits whatever carries the bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from tskernels.dtypes import compute_dtype
from tskernels.mesh_axes import group_members


class AxisCommunicator(Protocol):
    """The ranks along one axis, this one among them. Every rank of the axis must make the same calls in the same order."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def all_reduce(self, x: Tensor, reduction: str) -> Tensor:
        """Sum or max over ranks."""

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """Ranks' blocks joined in rank order along `dim`."""

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        """Sum over ranks, this rank's block along `dim`."""

    def all_to_all(self, x: Tensor, split_dim: int, concat_dim: int) -> Tensor:
        """Block j along `split_dim` goes to rank j; what arrives is joined in rank order along `concat_dim`."""


class Exchange(Protocol):
    """What carries tensors between the members of a group: all that an implementation must bring."""

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every member's `x`, in member order."""

    def swap(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Block j goes to member j; the blocks that members sent here, in member order. All of one shape."""


class Group:
    """An AxisCommunicator over an Exchange; a lone rank exchanges nothing."""

    def __init__(self, rank: int, size: int, exchange: Exchange | None = None) -> None:
        if size > 1 and exchange is None:
            raise ValueError(f"a group of {size} ranks needs an exchange")
        self.rank = rank
        self.size = size
        self._exchange = exchange

    def all_reduce(self, x: Tensor, reduction: str) -> Tensor:
        if self._exchange is None:
            return x
        if x.nbytes < _SMALL_BYTES:
            return reduce_in_order(self._exchange.gather(x), reduction)
        # Each rank reduces a part: the traffic of a ring, and the same order for each element as above.
        flat = torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % self.size))
        mine = reduce_in_order(self._exchange.swap(flat.chunk(self.size)), reduction)
        return torch.cat(self._exchange.gather(mine))[: x.numel()].view(x.shape)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        return x if self._exchange is None else torch.cat(self._exchange.gather(x), dim)

    def reduce_scatter(self, x: Tensor, dim: int) -> Tensor:
        if self._exchange is None:
            return x
        return reduce_in_order(self._exchange.swap(blocks(x, self.size, dim)), "sum")

    def all_to_all(self, x: Tensor, split_dim: int, concat_dim: int) -> Tensor:
        if self._exchange is None:
            return x
        return torch.cat(self._exchange.swap(blocks(x, self.size, split_dim)), concat_dim)


_SMALL_BYTES = 64 * 1024  # below it the second message costs more than the bytes it saves


def blocks(x: Tensor, count: int, dim: int) -> tuple[Tensor, ...]:
    """`count` equal blocks along `dim`."""
    if x.shape[dim] % count:
        raise ValueError(f"dimension {dim} of {list(x.shape)} cannot be split into {count} equal blocks")
    return x.chunk(count, dim)


def reduce_in_order(parts: Sequence[Tensor], reduction: str) -> Tensor:
    """Sum or max of equal shapes, first to last, in f32 (f64 in f64), rounded once; integers stay what they are."""
    if reduction not in ("sum", "max"):
        raise ValueError(f"unknown reduction `{reduction}`; known: sum, max")
    floating = parts[0].is_floating_point()
    total = parts[0].to(compute_dtype(parts[0].dtype) if floating else parts[0].dtype, copy=True)
    for part in parts[1:]:
        if reduction == "sum":
            total += part
        else:
            torch.maximum(total, part.to(total.dtype), out=total)
    return total.to(parts[0].dtype)


Connect = Callable[[tuple[int, ...]], Exchange]
"""Gives the exchange among mesh ranks in the order given, of which this rank is one."""


class MeshCommunicator:
    """This rank's place in a mesh, and its communicators. `sizes` goes major to minor; a rank is its row-major index."""

    def __init__(self, sizes: Mapping[str, int], rank: int, connect: Connect) -> None:
        self.sizes = dict(sizes)
        self.rank = rank
        self.size = num_ranks(sizes)
        self._connect = connect
        self._groups: dict[str, Group] = {}
        if not 0 <= rank < self.size:
            raise ValueError(f"rank {rank} is outside a mesh of {self.size} ranks")

    def axis(self, name: str) -> AxisCommunicator:
        """The ranks that differ from this one only in the named axes, first name major."""
        if name not in self._groups:
            members = group_members(self.sizes, self.rank, name)
            exchange = self._connect(members) if len(members) > 1 else None
            self._groups[name] = Group(members.index(self.rank), len(members), exchange)
        return self._groups[name]

    def coordinate(self, name: str) -> int:
        """This rank's index along the axis."""
        return group_members(self.sizes, self.rank, name).index(self.rank)


class LoneRank(MeshCommunicator):
    """The mesh of a thread that none was bound to: every axis, whatever its name, has one rank."""

    def __init__(self) -> None:
        super().__init__({}, 0, _no_exchange)

    def axis(self, name: str) -> AxisCommunicator:
        return Group(0, 1)

    def coordinate(self, name: str) -> int:
        return 0


def _no_exchange(members: tuple[int, ...]) -> Exchange:
    raise AssertionError(f"a lone rank has no exchange with {members}")


def num_ranks(sizes: Mapping[str, int]) -> int:
    """Ranks of a mesh."""
    total = 1
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"mesh axis `{name}` has size {size}")
        total *= size
    return total


_bound = threading.local()
_LONE = LoneRank()


def current() -> MeshCommunicator:
    """The mesh bound to this thread; one rank on every axis when none is."""
    mesh: MeshCommunicator = getattr(_bound, "mesh", _LONE)
    return mesh


@contextmanager
def use(mesh: MeshCommunicator) -> Iterator[MeshCommunicator]:
    """Bind a mesh to this thread for the block."""
    before = current()
    _bound.mesh = mesh
    try:
        yield mesh
    finally:
        _bound.mesh = before
