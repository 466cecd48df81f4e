"""What a front end hears of one request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tsrun.errors import MachineError
from tsrun.generation import Event
from tsrun.serve.engine_client import Generation


def test_what_came_before_the_engine_went_is_heard_first() -> None:
    client: Any = None  # which only an abort asks
    heard: list[list[Event]] = []

    async def listen() -> None:
        generation = Generation(client, 1, "r")
        generation.put(Event(1, (5,), "a"), 0.0)
        generation.put(Event(1, (6,), "b"), 0.0)
        generation.put(MachineError("the engine", "has gone", "start it again"), 0.0)
        async for events in generation:
            heard.append(events)

    with pytest.raises(MachineError, match="has gone"):
        asyncio.run(listen())
    assert [event.text for events in heard for event in events] == ["a", "b"]
