"""How long a server serves: until it is told to end and what runs has ended, or until its engine has failed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import Protocol

from tsrun.errors import MachineError, TsrunError
from tsrun.generate import say
from tsrun.serve.engine_client import EngineClient
from tsrun.serve.health import Served

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

    @classmethod
    def by_signals(cls) -> Told:
        """SIGINT or SIGTERM: the first says that what runs may end first, the second that it may not."""
        told = cls()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, lambda: told.end(at_once=told.event.is_set()))
        return told

    def end(self, *, at_once: bool) -> None:
        self.at_once = self.at_once or at_once
        self.event.set()


async def serve_until_told(
    listeners: Sequence[Listener], served: Served, drain_seconds: float, told: Told, others: Sequence[Other] = ()
) -> None:
    """Raises MachineError where the engine has failed, or another process: then what runs elsewhere ends as if it was told to."""
    serving = [asyncio.create_task(listener.serve()) for listener in listeners]
    serving += [asyncio.create_task(other.serve(served.engine)) for other in others]
    failing = asyncio.create_task(_failure(served.engine))
    telling = asyncio.create_task(told.event.wait())
    await asyncio.wait((*serving, failing, telling), return_when=asyncio.FIRST_COMPLETED)
    engine = served.engine
    if engine.failure is None:
        served.is_draining = True
        for other in others:
            other.end(at_once=False)
        if engine.num_open:
            say(f"shutting down when {engine.num_open} requests have ended")
        ends = time.monotonic() + drain_seconds
        while (engine.num_open or any(other.is_serving for other in others)) and time.monotonic() < ends and not told.at_once:
            await asyncio.sleep(0.02)
    ending: list[Ending] = [*listeners, *others]
    for one in ending:
        one.end(at_once=told.at_once or engine.num_open > 0)
    await asyncio.wait(serving, timeout=_END_SECONDS)
    for one in ending:
        one.end(at_once=True)  # whoever is in the middle of a question
    await asyncio.gather(*serving)
    for task in (failing, telling):
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
