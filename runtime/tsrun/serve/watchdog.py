"""Notices an engine that is stuck, by its silence. A request that steps go on without the engine notices itself (`progress.py`)."""

from __future__ import annotations

import asyncio
import logging

from tsrun.serve.engine_client import EngineClient
from tsrun.serve.logs import fields
from tsrun.serve.progress import look_seconds

log = logging.getLogger("tsrun.serve")


async def watch(engine: EngineClient) -> None:
    """Wait until the engine, whose process is ours, is stuck, and end it."""
    await end_stuck(engine, await silence(engine))


async def silence(engine: EngineClient) -> float:
    """Wait until the engine has requests and says nothing for as long as it may; the seconds that it said nothing.

    Silence is counted in looks, not by the clock: while this process itself was stopped, nobody could hear the engine.
    """
    every = look_seconds(engine.watchdog_seconds)
    heard, quiet = engine.last_news, 0.0
    while quiet < engine.watchdog_seconds:
        await asyncio.sleep(every)
        quiet = quiet + every if engine.num_open and engine.last_news == heard else 0.0
        heard = engine.last_news
    return quiet


async def end_stuck(engine: EngineClient, quiet: float) -> None:
    """Put down what the engine is doing, and end it with what it has. Its process is ours."""
    if engine.is_given_up or engine.process is None:
        return
    engine.is_given_up = True
    state, stacks = engine.process.state(), await engine.process.stacks()
    found = engine.statistics
    log.error(
        "the watchdog ends the engine, which had requests and said nothing",
        extra=fields(
            stacks,
            seconds=round(quiet, 1),
            engine_pid=engine.process.pid,
            process_state=state,
            requests=engine.open_requests(),
            running=None if found is None else found.running,
            load=None if found is None else found.load,
        ),
    )
    engine.give_up(f"the watchdog ended it: a step had not ended after {engine.watchdog_seconds:g} s")
