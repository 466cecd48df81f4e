"""Whether the server does what it is there for: `/health` is about tokens being made, `/ready` about new requests being taken."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tsrun.serve.engine_client import EngineClient

QUIET_SECONDS = 60.0
"""Without news from the engine while it has requests, after which it counts as stuck. A step takes a fraction of it."""


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
        """Why no new request is taken, if so."""
        return self.wrong() or ("the server is shutting down" if self._served.is_draining else None)

    def wrong(self) -> str | None:
        """Why no tokens are made, if so."""
        engine = self._served.engine
        if engine.failure is not None:
            return f"the engine has failed: {engine.failure}"
        if engine.quiet_seconds > QUIET_SECONDS:
            return f"the engine has made nothing for {engine.quiet_seconds:.0f} s"
        return None

    def _answer(self, wrong: str | None) -> Response:
        body = {"status": "ok", "requests": self._served.engine.num_open} if wrong is None else {"status": "failing", "why": wrong}
        return JSONResponse(body, 200 if wrong is None else 503)
