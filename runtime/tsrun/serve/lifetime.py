"""How long a server serves: until it is told to end and what runs has ended, or until its engine has failed."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from types import FrameType
from typing import Any, Protocol, TypeVar

from tsrun.errors import MachineError, TsrunError
from tsrun.serve.engine_client import EngineClient
from tsrun.serve.health import Served
from tsrun.serve.logs import fields
from tsrun.serve.watchdog import watch

Result = TypeVar("Result")
log = logging.getLogger("tsrun.serve")

_END_SECONDS = 2.0
"""For what is being written when nothing runs any more."""


class Ending(Protocol):
    def end(self, *, at_once: bool) -> None:
        """Take no more, and return from `serve` when answers are written; at once: whatever is not."""


class Listener(Ending, Protocol):
    async def serve(self) -> None:
        """Until `end`."""


class Other(Ending, Protocol):
    """Another process that serves the same. It lets what runs there end first, unless it is to end at once."""

    @property
    def is_serving(self) -> bool: ...
    async def serve(self, engine: EngineClient) -> None:
        """Until `end`, or until it has ended by itself."""

    def error(self) -> TsrunError | None:
        """Why it has ended otherwise than as it was told to."""


class Told:
    """Whether to end, and whether what runs may end first."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.at_once = False
        self._number = 0

    @classmethod
    def by_signals(cls) -> Told:
        """SIGINT or SIGTERM, from now on: the first says that what runs may end first, the second that it may not. Of a running loop."""
        told = cls()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, told._take, number)
        return told

    def _take(self, number: int) -> None:
        self._number = number
        self.end(at_once=self.event.is_set())

    def end(self, *, at_once: bool) -> None:
        self.at_once = self.at_once or at_once
        self.event.set()

    async def before(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of what has to come before anything is served. SystemExit, as of the signal, where one comes first."""
        working = asyncio.ensure_future(work)
        telling = asyncio.ensure_future(self.event.wait())
        await asyncio.wait((working, telling), return_when=asyncio.FIRST_COMPLETED)
        for one in (working, telling):
            if not one.done():
                one.cancel()
        await asyncio.wait((working, telling))
        if self.event.is_set():
            raise SystemExit(128 + self._number)
        return working.result()


def end_on_sigterm() -> None:
    """While nothing runs that has to end first. What is being done is left by SystemExit, so that it can take away what it has made."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


async def serve_until_told(
    listeners: Sequence[Listener], served: Served, told: Told, drain_seconds: float, others: Sequence[Other] = ()
) -> None:
    """Raises MachineError where the engine has failed, or another process: then what runs elsewhere ends as if it was told to."""
    engine = served.engine
    serving = [asyncio.create_task(listener.serve()) for listener in listeners]
    serving += [asyncio.create_task(other.serve(engine)) for other in others]
    failing = asyncio.create_task(_failure(engine))
    telling = asyncio.create_task(told.event.wait())
    watching = [asyncio.create_task(watch(engine))] if engine.process is not None and engine.watchdog_seconds else []
    await asyncio.wait((*serving, failing, telling), return_when=asyncio.FIRST_COMPLETED)
    if engine.failure is None:
        served.is_draining = True
        for other in others:
            other.end(at_once=False)
        if engine.num_open:
            log.info("shutting down when what is open has ended", extra=fields(requests=engine.num_open))
        ends = time.monotonic() + drain_seconds
        while (engine.num_open or any(other.is_serving for other in others)) and time.monotonic() < ends and not told.at_once:
            await asyncio.sleep(0.02)
        engine.break_off()
    ending: list[Ending] = [*listeners, *others]
    for one in ending:
        one.end(at_once=told.at_once)
    await asyncio.wait(serving, timeout=_END_SECONDS)
    for one in ending:
        one.end(at_once=True)  # whoever is in the middle of a question
    await asyncio.gather(*serving)
    for task in (failing, telling, *watching):
        task.cancel()
    if engine.failure is not None:
        raise MachineError("engine", engine.failure, "start the server again")
    for other in others:
        if error := other.error():
            raise error


async def _failure(engine: EngineClient) -> None:
    while engine.failure is None:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # for the answers that say so
