"""Answers over HTTP: JSON, or a stream of server-sent events. Work for a client that has gone is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
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
    events: AsyncGenerator[bytes],
    error_event: Callable[[HttpError], bytes],
    error_body: ErrorBody,
    headers: Headers | None = None,
) -> None:
    """Send events as they come. What goes wrong before the first of them is an answer with a status of its own; after it, an event."""
    has_started = False
    sent_at = 0.0

    async def put(data: bytes) -> None:
        nonlocal has_started, sent_at
        if not has_started:
            has_started = True
            await _start(
                send,
                200,
                {
                    "content-type": "text/event-stream; charset=utf-8",
                    "cache-control": "no-cache",
                    "x-accel-buffering": "no",
                    **(headers or {}),
                },
            )
        sent_at = asyncio.get_running_loop().time()
        await send(_part(data))

    async def keep_alive() -> None:
        """A task beside the stream, and not a limit on each wait for an event, which would cost more than the event."""
        while True:
            quiet = asyncio.get_running_loop().time() - sent_at
            if quiet >= KEEP_ALIVE_SECONDS:
                await put(b": keep-alive\n\n")
            else:
                await asyncio.sleep(KEEP_ALIVE_SECONDS - quiet)

    async def run() -> None:
        nonlocal sent_at
        sent_at = asyncio.get_running_loop().time()
        keeping = asyncio.ensure_future(keep_alive())
        try:
            async with contextlib.aclosing(events):
                async for data in events:
                    await put(data)
        except Exception as error:
            known = http_error(error)
            if not has_started:
                await send_error(send, known, error_body, headers)
                return
            await put(error_event(known))
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await keeping
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
