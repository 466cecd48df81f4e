"""Whether the server does what it is there for: `/health` is about tokens being made, `/ready` about new requests being taken."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tsrun.serve.engine_client import EngineClient

_QUIET_SECONDS = 60.0  # without a watchdog


class Served(Protocol):
    """A front end, whatever it speaks. is_draining: it takes no more requests."""

    engine: EngineClient
    is_draining: bool


class Health:
    def __init__(self, served: Served) -> None:
        self._served = served

    async def health(self, request: Request) -> Response:
        return self._answer(self.wrong())

    async def ready(self, request: Request) -> Response:
        return self._answer(self.unready())

    def unready(self) -> str | None:
        """Why no new request should come, if so: an engine that may be stuck gets no more, before it counts as such."""
        return self.wrong() or ("the server is shutting down" if self._served.is_draining else self._quiet(self._patience / 2))

    def wrong(self) -> str | None:
        """Why no tokens are made, if so."""
        engine = self._served.engine
        if engine.failure is not None:
            return f"the engine has failed: {engine.failure}"
        return self._quiet(self._patience)

    @property
    def _patience(self) -> float:
        """Seconds without news from the engine while it has requests, after which it counts as stuck. A step takes a fraction of it."""
        return self._served.engine.watchdog_seconds or _QUIET_SECONDS

    def _quiet(self, seconds: float) -> str | None:
        quiet = self._served.engine.quiet_seconds
        return f"the engine has made nothing for {quiet:.0f} s" if quiet > seconds else None

    def _answer(self, wrong: str | None) -> Response:
        if wrong is not None:
            return JSONResponse({"status": "failing", "why": wrong}, 503)
        engine = self._served.engine
        body: dict[str, object] = {"status": "ok", "requests": engine.num_open}
        if engine.statistics is not None and engine.statistics.stuck:
            body["ended_by_watchdog"] = engine.statistics.stuck
        return JSONResponse(body)
