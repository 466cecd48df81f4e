"""The ranks as one torch.distributed group over gloo: how it is joined, what carries collectives, and the control messages from rank 0."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
import torch.distributed as dist

from tskernels import gloo, simd
from tskernels.communicator import MeshCommunicator, num_ranks, use
from tsrun import segment_names
from tsrun.errors import MachineError, UsageError
from tsrun.limits import Limits
from tsrun.step import Step, announced_ints, pack, packed_ints, unpack

if TYPE_CHECKING:
    from tskernels.shared_memory import SharedMemory
    from tsrun.gpu.device import Device
    from tsrun.gpu.peers import PeerMemories, PeerMemory

_JOIN_TIMEOUT = timedelta(minutes=2)
_IDLE_TIMEOUT = timedelta(days=365)  # a rank waits for its next step as long as nobody asks for anything
_LEAVE_SECONDS = 10.0
_FIRST_INTS = 1024  # a decode step fits in one message of this size; a longer step takes a second one


class Opcode(IntEnum):
    STOP = 0
    RUN = 1
    DRAFT = 2


@dataclass(frozen=True, slots=True)
class Joined:
    """A rank in its group. memory: what carries its collectives, where all ranks are on one host; else gloo does; peers: of ranks on
    GPUs, memory that their kernels exchange through."""

    mesh: MeshCommunicator
    memory: SharedMemory | None
    peers: PeerMemories | None = None

    def leave(self) -> None:
        if self.memory is not None:
            self.memory.leave()
        leave()


def join(
    sizes: Mapping[str, int], rank: int, store_file: Path | None, axes: Sequence[str], threads: int, *, device: Device | None = None
) -> Joined:
    """Join the group. Without a store file the launcher's environment says where the ranks meet. axes: of the program's collectives;
    device: where what they carry lies, if it is a GPU."""
    if dist.is_initialized():
        raise UsageError("ranks", "this process is in a torch.distributed group already", "leave it first, or use a process of its own")
    # Without a launcher all ranks are on this machine: nothing need listen anywhere else, and no name need resolve.
    if store_file is not None and "lo" in {name for _, name in socket.if_nameindex()}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = "env://" if store_file is None else f"file://{store_file}"
    gloo.join(num_ranks(sizes), rank, meeting, timeout=_JOIN_TIMEOUT)
    if device is not None:
        from tsrun.gpu.peers import PeerMemories  # late: ranks on CPUs have no use for it

        return Joined(gloo.mesh(sizes, device.collectives), None, PeerMemories(device, sizes, rank, axes))
    memory = _share_memory(sizes, rank, axes, threads)
    return Joined(gloo.mesh(sizes) if memory is None else memory.mesh(), memory)


def _share_memory(sizes: Mapping[str, int], rank: int, axes: Sequence[str], threads: int) -> SharedMemory | None:
    """Memory that every rank has open. None where one can not: ranks on several hosts, no room for it, no kernels in C++."""
    token = torch.frombuffer(bytearray(os.urandom(16)), dtype=torch.uint8)
    dist.broadcast(token, src=0)
    name = f"/tsrun-{token.numpy().tobytes().hex()}"
    can = bool(axes) and simd.is_available()

    def opened() -> SharedMemory | None:
        if not can:
            return None
        from tskernels.shared_memory import SharedMemory  # late: it needs the kernels

        try:
            return SharedMemory(sizes, rank, axes, name, threads=threads, timeout_seconds=_JOIN_TIMEOUT.total_seconds())
        except OSError:
            return None

    with segment_names.known(name) if can else nullcontext():
        dist.barrier()  # before there is anything of this name: whoever knows it can take it away when the others have been killed
        memory = opened() if rank == 0 else None
        dist.barrier()
        if rank != 0:
            memory = opened()
        everyone = torch.tensor([int(memory is not None)])
        dist.all_reduce(everyone, dist.ReduceOp.MIN)
    return memory if everyone.item() else None


def share_limits(limits: Limits | None) -> Limits:
    """Rank 0 tells everyone the limits: they follow from its machine and its options. Blocks until rank 0 has them."""
    text = b"" if limits is None else msgspec.json.encode(limits)
    size = torch.tensor([len(text)])
    dist.broadcast(size, src=0)
    message = torch.zeros(int(size), dtype=torch.uint8) if limits is None else torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(message, src=0)
    return msgspec.json.decode(message.numpy().tobytes(), type=Limits)


class Control:
    """Step plans on their way from rank 0 to the others, as flat int32 in a buffer that is kept, and grows with the longest."""

    def __init__(self) -> None:
        self._message = torch.zeros(_FIRST_INTS, dtype=torch.int32)
        self._array = self._message.numpy()
        self._group = dist.new_group(backend="gloo", timeout=_IDLE_TIMEOUT)
        if self._group is None:
            raise MachineError("ranks", "torch.distributed made no control group")

    def send(self, opcode: Opcode, step: Step | None = None) -> None:
        """From rank 0: tell every rank what to do."""
        size = 0
        if step is None:
            self._array[0] = opcode
        else:
            size = packed_ints(step)
            self._make_room(size)
            pack(step, opcode, self._array)
        self._broadcast(0, _FIRST_INTS)
        if size > _FIRST_INTS:
            self._broadcast(_FIRST_INTS, size)

    def receive(self) -> Step | None:
        """On the other ranks: the step to run, or None to stop. The step's arrays are valid until the next receive."""
        self._broadcast(0, _FIRST_INTS)
        if self._array[0] == Opcode.STOP:
            return None
        size = announced_ints(self._array)
        if size > _FIRST_INTS:
            self._make_room(size)
            self._broadcast(_FIRST_INTS, size)
        return replace(unpack(self._array), drafting=bool(self._array[0] == Opcode.DRAFT))

    def _make_room(self, size: int) -> None:
        """A step says every changed entry of the block tables: few as a rule, and all of them when long prompts are found in the cache."""
        if size > len(self._message):
            grown = torch.zeros(max(size, 2 * len(self._message)), dtype=torch.int32)
            grown[: len(self._message)] = self._message
            self._message = grown
            self._array = grown.numpy()

    def _broadcast(self, begin: int, end: int) -> None:
        dist.broadcast(self._message[begin:end], src=0, group=self._group)


class Group:
    """Rank 0's end of the group: what it says to the other ranks."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        store_file: Path | None,
        axes: Sequence[str],
        threads: int,
        limits: Limits,
        *,
        device: Device | None = None,
    ) -> None:
        try:
            self._joined = join(sizes, 0, store_file, axes, threads, device=device)
            share_limits(limits)
            self._control = Control()
        except BaseException:
            leave()
            raise

    @contextmanager
    def running(self, step: Step) -> Iterator[None]:
        """Tell the other ranks to run a step, and be among them."""
        self._control.send(Opcode.DRAFT if step.drafting else Opcode.RUN, step)
        with use(self._joined.mesh):
            yield

    @property
    def memory(self) -> SharedMemory | None:
        """What the ranks share, where collectives go through it."""
        return self._joined.memory

    @property
    def peers(self) -> Mapping[str, PeerMemory]:
        """By axis, what the GPUs of ranks share."""
        return {} if self._joined.peers is None else self._joined.peers.by_axis

    def give_back(self) -> None:
        """What the GPUs of ranks shared, when the other ranks have ended."""
        if self._joined.peers is not None:
            self._joined.peers.close()

    def stop(self) -> None:
        self._control.send(Opcode.STOP)

    def leave(self) -> None:
        self._joined.leave()


def leave() -> None:
    if not dist.is_initialized():
        return
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        dist.destroy_process_group()
        return
    # NCCL's part ends with that of all ranks: it waits for ever for one that hangs.
    ending = threading.Thread(target=dist.destroy_process_group, name="tsrun-leaving", daemon=True)
    ending.start()
    ending.join(_LEAVE_SECONDS)
