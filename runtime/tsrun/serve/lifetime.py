"""How long a server serves: until it is told to end and what runs has ended, or until its engine has failed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import Protocol

from tsrun.errors import MachineError
from tsrun.generate import say
from tsrun.serve.engine_client import EngineClient
from tsrun.serve.health import Served

_END_SECONDS = 2.0
"""For what is being written when nothing runs any more."""


class Listener(Protocol):
    async def serve(self) -> None:
        """Until `end`."""

    def end(self, *, at_once: bool) -> None:
        """Take no more, and return from `serve` when answers are written; at once: whatever is not."""


class _Told:
    """SIGINT or SIGTERM: the first says that what runs may end first, the second that it may not."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.at_once = False
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._take)

    def _take(self) -> None:
        self.at_once = self.event.is_set()
        self.event.set()


async def serve_until_told(listeners: Sequence[Listener], served: Served, drain_seconds: float) -> None:
    """Raises MachineError where the engine has failed."""
    told = _Told()
    serving = [asyncio.create_task(listener.serve()) for listener in listeners]
    failing = asyncio.create_task(_failure(served.engine))
    telling = asyncio.create_task(told.event.wait())
    await asyncio.wait((*serving, failing, telling), return_when=asyncio.FIRST_COMPLETED)
    engine = served.engine
    if telling.done():
        served.is_draining = True
        if engine.num_open:
            say(f"shutting down when {engine.num_open} requests have ended")
        ends = time.monotonic() + drain_seconds
        while engine.num_open and time.monotonic() < ends and not told.at_once:
            await asyncio.sleep(0.02)
    for listener in listeners:
        listener.end(at_once=told.at_once or engine.num_open > 0)
    await asyncio.wait(serving, timeout=_END_SECONDS)
    for listener in listeners:
        listener.end(at_once=True)  # whoever is in the middle of a question
    await asyncio.gather(*serving)
    for task in (failing, telling):
        task.cancel()
    if engine.failure is not None:
        raise MachineError("engine", engine.failure, "start the server again")


async def _failure(engine: EngineClient) -> None:
    while engine.failure is None:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # for the answers that say so
