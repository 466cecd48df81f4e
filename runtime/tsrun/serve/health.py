"""Whether the server does what it is there for: `/health` is about tokens being made, `/ready` about new requests being taken."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tsrun.serve.front import Front

QUIET_SECONDS = 60.0
"""Without news from the engine while it has requests, after which it counts as stuck. A step takes a fraction of it."""


class Health:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def health(self, request: Request) -> Response:
        return self._answer(self._wrong())

    async def ready(self, request: Request) -> Response:
        return self._answer(self._wrong() or ("the server is shutting down" if self._front.is_draining else None))

    def _wrong(self) -> str | None:
        engine = self._front.engine
        if engine.failure is not None:
            return f"the engine has failed: {engine.failure}"
        if engine.quiet_seconds > QUIET_SECONDS:
            return f"the engine has made nothing for {engine.quiet_seconds:.0f} s"
        return None

    def _answer(self, wrong: str | None) -> Response:
        body = {"status": "ok", "requests": self._front.engine.num_open} if wrong is None else {"status": "failing", "why": wrong}
        return JSONResponse(body, 200 if wrong is None else 503)
