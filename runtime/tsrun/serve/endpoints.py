"""What the APIs that generate have in common as HTTP: a body in, JSON or a stream out, errors in the API's form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from tsrun.serve.answers import Answer, Origin
from tsrun.serve.bodies import MOST_BYTES, parsed
from tsrun.serve.front import Front
from tsrun.serve.http_errors import HttpError, http_error
from tsrun.serve.metrics import Metrics
from tsrun.serve.sessions import session_key
from tsrun.serve.sse import event, send_error, send_json, send_stream, unless_gone

log = logging.getLogger("tsrun.serve")
Body = TypeVar("Body", bound=msgspec.Struct)
_MOST_NAMES = 1000  # of unknown fields that are counted


class Answering(Protocol):
    """One request under way: `start` may refuse, then one of the others. answers: what then runs, to be aborted when nobody reads on."""

    @property
    def answers(self) -> Sequence[Answer]: ...
    async def start(self, origin: Origin) -> None: ...
    async def whole(self) -> dict[str, Any]: ...
    def stream(self) -> AsyncIterator[bytes]: ...


class Dialect:
    """How an API says what went wrong. This is OpenAI's."""

    def error_body(self, error: HttpError, request_id: str) -> Any:
        return error.openai()

    def error_event(self, error: HttpError, request_id: str) -> bytes:
        return event(error.openai())


class AnthropicDialect(Dialect):
    def error_body(self, error: HttpError, request_id: str) -> Any:
        return error.anthropic(request_id)

    def error_event(self, error: HttpError, request_id: str) -> bytes:
        return event(error.anthropic(request_id), "error")


@dataclass
class UnknownFields:
    """Fields that requests had and that no API here knows: counted, and each warned of once."""

    metrics: Metrics
    seen: set[str] = field(default_factory=set)

    def note(self, path: str, names: list[str]) -> None:
        for name in names:
            key = f"{path} {name[:64]}"
            if key not in self.seen:
                if len(self.seen) >= _MOST_NAMES:
                    continue
                self.seen.add(key)
                log.warning("%s: the field %r is not known, and is ignored", path, name[:64])
            self.metrics.unknown_field(name[:64])


@dataclass(frozen=True)
class Generating(Generic[Body]):
    """An ASGI application for one path."""

    front: Front
    form: type[Body]
    answer: Callable[[Front, Body], Answering]
    dialect: Dialect
    unknown: UnknownFields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id: str = scope["state"]["request_id"]
        headers = {"x-request-id": request_id}

        def error_body(error: HttpError) -> Any:
            return self.dialect.error_body(error, request_id)

        try:
            body, unknown = await parsed(await read_body(receive), self.form)
            self.unknown.note(scope["path"], unknown)
            answer = self.answer(self.front, body)
            origin = replace(scope["state"]["origin"], session=session_key(_session_fields(body), scope["state"]["headers"]))
            if getattr(body, "streams", False):
                await send_stream(
                    receive,
                    send,
                    _started(answer, origin, headers),
                    lambda error: self.dialect.error_event(error, request_id),
                    error_body,
                    headers,
                )
            else:
                await send_json(send, await unless_gone(receive, _whole(answer, origin, headers)), headers=headers)
        except asyncio.CancelledError:
            log.info("%s %s: the client has gone", request_id, scope["path"])
        except Exception as error:
            known = http_error(error)
            if known.status == 500:
                log.exception("%s %s", request_id, scope["path"])
            await send_error(send, known, error_body, headers)


def _session_fields(body: Any) -> list[str | None]:
    metadata = getattr(body, "metadata", None) or {}
    return [getattr(body, "session_id", None), getattr(body, "prompt_cache_key", None), anthropic_session(metadata.get("user_id"))]


def anthropic_session(user_id: Any) -> str | None:
    """Of Claude Code's `metadata.user_id`, which is a JSON object as text, or names parts of it."""
    if not isinstance(user_id, str):
        return None
    try:
        found = msgspec.json.decode(user_id)
    except (msgspec.DecodeError, RecursionError):
        _, mark, session = user_id.rpartition("_session_")
        return session if mark else None
    return found.get("session_id") if isinstance(found, dict) and isinstance(found.get("session_id"), str) else None


async def read_body(receive: Receive) -> bytes:
    """HttpError 413 when it is longer than MOST_BYTES."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            raise HttpError(413, f"the body has more than {MOST_BYTES // 2**20} MiB")
        if not message.get("more_body"):
            return b"".join(parts)


async def _started(answer: Answering, origin: Origin, headers: dict[str, str]) -> AsyncIterator[bytes]:
    try:
        await _start(answer, origin, headers)
        async for data in answer.stream():
            yield data
    finally:
        _end(answer)


async def _whole(answer: Answering, origin: Origin, headers: dict[str, str]) -> dict[str, Any]:
    try:
        await _start(answer, origin, headers)
        return await answer.whole()
    finally:
        _end(answer)


async def _start(answer: Answering, origin: Origin, headers: dict[str, str]) -> None:
    """What can not be is refused before anything is answered. headers: of the answer, which are added to."""
    await answer.start(origin)
    left = answer.answers[-1].tokens_left if answer.answers else None
    headers.update({} if left is None else left.headers())
    for one in answer.answers:
        await one.accepted()


def _end(answer: Answering) -> None:
    for one in answer.answers:
        one.close()
