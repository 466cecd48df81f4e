"""One run: users at a constant number, or sessions that come at a rate, until the plan's sessions are over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tsrun.bench.records import Run, TurnRecord
from tsrun.bench.users import Asking, User
from tsrun.bench.watching import Watch
from tsrun.bench.words import generator

if TYPE_CHECKING:
    from tsrun.bench.client import Client
    from tsrun.bench.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Load:
    """concurrency: users, of whom each begins a session when its last one is over; otherwise sessions come at `rate` a minute, each with a
    user of its own. sessions: after which the run is over; most_seconds: after which it is over in any case."""

    concurrency: int | None
    rate: float | None
    sessions: int
    most_seconds: float


@dataclass(slots=True)
class Crowd:
    """Who runs sessions against a server. Until the last of them is over, who has none left runs further ones, so that the load stays what
    it is; what is then under way is broken off, and counts for nothing."""

    sessions: Sessions
    client: Client
    asking: Asking
    load: Load
    on_session: Callable[[int], None] = lambda number: None
    on_turn: Callable[[TurnRecord], None] = lambda turn: None
    records: list[TurnRecord] = field(default_factory=list)
    _begun: int = 0
    _over: set[int] = field(default_factory=set)
    _opened: dict[str, int] = field(default_factory=dict)
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, repeat: int) -> Run:
        async with Watch() as watch:
            began = time.perf_counter()
            tasks = asyncio.create_task(self._users() if self.load.concurrency is not None else self._arrivals())
            done = asyncio.create_task(self._done.wait())
            finished, _ = await asyncio.wait({tasks, done}, timeout=self.load.most_seconds, return_when=asyncio.FIRST_COMPLETED)
            ended = time.perf_counter()
            seconds, joules = ended - began, watch.joules()
            for task in (tasks, done):
                task.cancel()
            await asyncio.gather(tasks, done, return_exceptions=True)
            if tasks in finished and not tasks.cancelled() and (error := tasks.exception()) is not None:
                raise error
            turns = [
                msgspec.structs.replace(turn, sent=round(turn.sent - began, 4), ended=round(turn.ended - began, 4))
                for turn in self.records
                if turn.ended <= ended
            ]
            return Run(self.load.concurrency, self.load.rate, repeat, round(seconds, 4), turns, watch.cost(seconds), joules)

    async def _users(self) -> None:
        assert self.load.concurrency is not None
        async with asyncio.TaskGroup() as group:
            for number in range(self.load.concurrency):
                group.create_task(self._one_after_the_other(number))

    async def _one_after_the_other(self, number: int) -> None:
        while not self._done.is_set():
            await self._session(number, self._next())

    async def _arrivals(self) -> None:
        assert self.load.rate is not None
        random = generator(self.sessions.plan.seed, "arrivals", self.sessions.plan.salt)
        async with asyncio.TaskGroup() as group:
            while not self._done.is_set():
                number = self._next()
                group.create_task(self._session(number, number))
                await asyncio.sleep(60.0 / self.load.rate * float(random.exponential()))

    def _next(self) -> int:
        self._begun += 1
        return self._begun - 1

    async def _session(self, user: int, number: int) -> None:
        one = User(self.sessions.plan, self.client, self.asking, user, self._opened, self._keep)
        await one.run(self.sessions.session(number))
        if number < self.load.sessions:
            self._over.add(number)
            self.on_session(len(self._over))
            if len(self._over) == self.load.sessions:
                self._done.set()

    def _keep(self, record: TurnRecord) -> None:
        self.records.append(record)
        self.on_turn(record)
