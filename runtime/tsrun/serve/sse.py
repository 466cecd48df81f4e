"""Answers over HTTP: JSON, or a stream of server-sent events. Work for a client that has gone is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.types import Message, Receive, Send

from tsrun.serve.http_errors import HttpError, http_error

KEEP_ALIVE_SECONDS = 15.0
"""Between comments while a prompt is long: proxies and clients close a stream on which nothing comes."""
_json = msgspec.json.Encoder()
Headers = Mapping[str, str]
ErrorBody = Callable[[HttpError], Any]


def event(data: Any, name: str | None = None) -> bytes:
    """One event: `data: …`, for some APIs with a name before it."""
    head = b"data: " if name is None else f"event: {name}\ndata: ".encode()
    return head + _json.encode(data) + b"\n\n"


async def send_json(send: Send, body: Any, *, status: int = 200, headers: Headers | None = None) -> None:
    data = _json.encode(body)
    await _start(send, status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})})
    await send({"type": "http.response.body", "body": data})


async def send_error(send: Send, error: HttpError, error_body: ErrorBody, headers: Headers | None = None) -> None:
    await send_json(send, error_body(error), status=error.status, headers={**(headers or {}), **error.headers})


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of work, which is cancelled when the client goes: asyncio.CancelledError then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise asyncio.CancelledError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await one


async def send_stream(
    receive: Receive,
    send: Send,
    events: AsyncIterator[bytes],
    error_event: Callable[[HttpError], bytes],
    error_body: ErrorBody,
    headers: Headers | None = None,
) -> None:
    """Send events as they come. What goes wrong before the first of them is an answer with a status of its own; after it, an event."""
    has_started = False

    async def begin() -> None:
        nonlocal has_started
        has_started = True
        await _start(
            send,
            200,
            {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})},
        )

    async def run() -> None:
        coming = aiter(events)
        following = asyncio.ensure_future(anext(coming, None))
        try:
            while True:
                done, _ = await asyncio.wait((following,), timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    if not has_started:
                        await begin()
                    await send(_part(b": keep-alive\n\n"))
                    continue
                data = following.result()
                if data is None:
                    break
                if not has_started:
                    await begin()
                await send(_part(data))
                following = asyncio.ensure_future(anext(coming, None))
        except Exception as error:
            known = http_error(error)
            if not has_started:
                await send_error(send, known, error_body, headers)
                return
            await send(_part(error_event(known)))
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await following
            if hasattr(coming, "aclose"):
                await coming.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await unless_gone(receive, run())


def _part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _start(send: Send, status: int, headers: Headers) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
