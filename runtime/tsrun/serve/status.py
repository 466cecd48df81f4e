"""The server at a glance: `/status` for programs, the page at `/` and `tsrun top` for people."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from tsrun.serve.front import Front

_SECONDS = 10.0  # over which rates are taken
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


class Status:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._began = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque()  # when, and how many tokens had been generated

    def snapshot(self) -> dict[str, object]:
        """Rates are of the last seconds, and of the time between two looks where there was none for longer."""
        front, engine = self._front, self._front.engine
        found, now = engine.statistics, time.monotonic()
        generated = 0 if found is None else found.generated_tokens
        self._seen.append((now, generated))
        while len(self._seen) > 2 and self._seen[1][0] < now - _SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        prompt, cached = front.metrics.prompt_counts()
        return {
            "model": front.model,
            "ready": engine.failure is None and not front.is_draining,
            "uptime_seconds": round(now - self._began, 1),
            "max_context": front.ready.max_context,
            "running": 0 if found is None else found.load.running,
            "waiting": 0 if found is None else found.load.waiting,
            "max_sequences": front.ready.max_sequences,
            "pages": front.ready.num_pages,
            "pages_held": 0 if found is None else front.ready.num_pages - found.load.free_pages,
            "pages_cached": 0 if found is None else found.load.cached_pages,
            "page_size": front.ready.page_size,
            "preemptions": 0 if found is None else found.load.preemptions,
            "steps": 0 if found is None else found.steps,
            "tokens_per_second": round((generated - before) / (now - since), 1) if now > since else 0.0,
            "generated_tokens": generated,
            "prompt_tokens": prompt,
            "cached_tokens": cached,
        }

    async def status(self, request: Request) -> Response:
        return JSONResponse(self.snapshot())


def page() -> Callable[[Request], Awaitable[Response]]:
    text = files("tsrun.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def endpoint(request: Request) -> Response:
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    return endpoint
