"""Ranks as threads of one process, for tests: the communicator without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from torch import Tensor

from tskernels.communicator import MeshCommunicator, num_ranks, use

Result = TypeVar("Result")
_TIMEOUT_SECONDS: Final = 60.0  # a rank that skips a collective must fail a test, not hang it


class _Meeting:
    """Where the members of one group leave what they send and take what the others left."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_TIMEOUT_SECONDS)
        self.left: list[Sequence[Tensor]] = [()] * size

    def trade(self, position: int, sent: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        # Clones: the sender may overwrite its buffer while others still read.
        self.left[position] = [x.clone() for x in sent]
        self.barrier.wait()
        everything = list(self.left)
        self.barrier.wait()  # nobody leaves anything new before all have taken
        return everything


class _Exchange:
    def __init__(self, meeting: _Meeting, position: int) -> None:
        self._meeting, self._position = meeting, position

    def gather(self, x: Tensor) -> list[Tensor]:
        return [sent[0] for sent in self._meeting.trade(self._position, [x])]

    def swap(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        return [sent[self._position] for sent in self._meeting.trade(self._position, blocks)]


class _Hall:
    """The meetings of one run; once a rank has failed, nobody waits for anybody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meetings: dict[tuple[int, ...], _Meeting] = {}
        self._closed = False

    def connect(self, rank: int, members: tuple[int, ...]) -> _Exchange:
        with self._lock:
            meeting = self._meetings.setdefault(members, _Meeting(len(members)))
            if self._closed:
                meeting.barrier.abort()
        return _Exchange(meeting, members.index(rank))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for meeting in self._meetings.values():
                meeting.barrier.abort()


def run_ranks(sizes: Mapping[str, int], function: Callable[[MeshCommunicator], Result]) -> list[Result]:
    """Run `function(mesh)` as every rank of a mesh, its mesh bound to its thread; results in rank order.

    The first failure is raised here; it ends the others' waits.
    """
    hall = _Hall()
    count = num_ranks(sizes)
    results: dict[int, Result] = {}
    failures: list[BaseException] = []  # in the order they happened

    def run(rank: int) -> None:
        try:
            with use(MeshCommunicator(sizes, rank, lambda members: hall.connect(rank, members))) as mesh:
                results[rank] = function(mesh)
        except BaseException as error:
            error.add_note(f"on rank {rank} of {count}")
            failures.append(error)
            hall.close()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank-{rank}", daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [results[rank] for rank in range(count)]
