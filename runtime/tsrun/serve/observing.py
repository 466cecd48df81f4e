"""Tells of every request when it is over: to the log, to `/metrics`, and as a trace where one is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsrun.serve.answers import Origin
from tsrun.serve.logs import fields
from tsrun.serve.metrics import Metrics
from tsrun.serve.records import CLIENT_GONE, Record

log = logging.getLogger("tsrun.serve")
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/status", "/"})
"""Of probes and pages that ask again and again: told of at the level `debug`, unless they fail."""


class Traces(Protocol):
    def give(self, record: Record) -> None: ...
    def close(self) -> None: ...


class Observer:
    """Of one server. traces: None where nobody collects them."""

    def __init__(self, model: str, metrics: Metrics, traces: Traces | None = None) -> None:
        self._model = model
        self._metrics = metrics
        self._traces = traces

    def end(self, record: Record) -> None:
        """A request is over."""
        record.ended = time.monotonic()
        self._metrics.response(record.status)
        level = logging.WARNING if record.failed else logging.DEBUG if record.path in _QUIET_PATHS else logging.INFO
        log.log(level, "request", extra=fields(**record.values(self._model)))
        if self._traces is not None and record.operation is not None:
            self._traces.give(record)


class Observed:
    """An ASGI layer around all others, so that no request gets around it. keys: the names of the API keys, in their order."""

    def __init__(self, app: ASGIApp, observer: Observer, keys: Sequence[str] = ()) -> None:
        self._app = app
        self._observer = observer
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record("", scope["path"])
        state = scope.setdefault("state", {})
        state["record"] = record

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            origin: Origin = state.get("origin", Origin())
            record.request_id = state.get("request_id", "")
            record.headers = state.get("headers", {})
            record.key = self._keys[origin.user - 1] if origin.user else None
            record.status = record.status or CLIENT_GONE
            self._observer.end(record)
