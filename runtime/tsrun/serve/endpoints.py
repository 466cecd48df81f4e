"""What the APIs that ask the engine have in common as HTTP: a body in, JSON or a stream out, errors in the API's form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec
from starlette.types import Receive, Scope, Send

from tsrun.serve.answers import Origin
from tsrun.serve.bodies import MOST_BYTES, parsed
from tsrun.serve.front import Front
from tsrun.serve.http_errors import HttpError, http_error
from tsrun.serve.logs import fields
from tsrun.serve.metrics import Metrics
from tsrun.serve.records import Outcome, Record
from tsrun.serve.sessions import session_key
from tsrun.serve.sse import event, send_error, send_json, send_stream, unless_gone
from tsrun.serve.token_limits import TokensLeft

log = logging.getLogger("tsrun.serve")
Body = TypeVar("Body", bound=msgspec.Struct)
_MOST_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_MOST_NAMES = 1000  # of unknown fields that are counted


class Running(Outcome, Protocol):
    """What runs in the engine for a request."""

    @property
    def tokens_left(self) -> TokensLeft | None:
        """Of the API key, where they are limited."""

    async def accepted(self) -> None:
        """Raises RequestError where the engine refuses it."""

    def close(self) -> None:
        """Once, however it ends: what still runs then is aborted."""


class Answering(Protocol):
    """One request under way: `start` may refuse, then one of the others. answers: what then runs, to be aborted when nobody reads on."""

    @property
    def answers(self) -> Sequence[Running]: ...
    async def start(self, origin: Origin) -> None: ...
    async def whole(self) -> dict[str, Any]: ...


@runtime_checkable
class Streaming(Answering, Protocol):
    """One that may be told of as it comes."""

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
                log.warning("a field of a request is not known, and is ignored", extra=fields(path=path, field=name[:64]))
            self.metrics.unknown_field(name[:64])


@dataclass(frozen=True)
class Generating(Generic[Body]):
    """An ASGI application for one path. operation: what traces call it; embeds: whether it asks the model for embeddings; None: for
    nothing."""

    front: Front
    form: type[Body]
    answer: Callable[[Front, Body], Answering]
    dialect: Dialect
    unknown: UnknownFields
    operation: str | None = None
    embeds: bool | None = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id: str = scope["state"]["request_id"]
        headers = {"x-request-id": request_id}
        record: Record = scope["state"]["record"]
        record.operation = self.operation

        def error_body(error: HttpError) -> Any:
            record.error = error.kind
            return self.dialect.error_body(error, request_id)

        def error_event(error: HttpError) -> bytes:
            record.error = error.kind
            return self.dialect.error_event(error, request_id)

        answer: Answering | None = None
        try:
            data = await read_body(receive)
            if self.embeds is not None:
                self.front.check_gives(embeddings=self.embeds)
            body, unknown = await parsed(data, self.form)
            self.unknown.note(scope["path"], unknown)
            answer = self.answer(self.front, body)
            record.asked = _asked(body)
            session = session_key(_session_fields(body), scope["state"]["headers"])
            origin = replace(scope["state"]["origin"], session=session, request_id=request_id)
            if isinstance(answer, Streaming) and getattr(body, "streams", False):
                await send_stream(
                    receive,
                    send,
                    _started(answer, origin, headers),
                    error_event,
                    error_body,
                    headers,
                )
            else:
                await send_json(send, await unless_gone(receive, _whole(answer, origin, headers)), headers=headers)
        except asyncio.CancelledError:  # the client has gone
            pass
        except Exception as error:
            known = http_error(error)
            if known.status == 500:
                log.exception("internal error", extra=fields(request_id=request_id, path=scope["path"]))
            await send_error(send, known, error_body, headers)
        finally:
            record.outcomes = () if answer is None else answer.answers


def _session_fields(body: Any) -> list[str | None]:
    metadata = getattr(body, "metadata", None) or {}
    return [getattr(body, "session_id", None), getattr(body, "prompt_cache_key", None), anthropic_session(metadata.get("user_id"))]


def _asked(body: Any) -> dict[str, Any]:
    """What traces say of a request, by its names there."""
    most = next((found for name in _MOST_TOKENS if (found := getattr(body, name, None)) is not None), None)
    names = {"temperature": "temperature", "top_p": "top_p", "frequency_penalty": "frequency_penalty", "n": "choice.count", "seed": "seed"}
    found = {f"gen_ai.request.{name}": getattr(body, own, None) for own, name in names.items()}
    return {**found, "gen_ai.request.max_tokens": most}


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


async def _started(answer: Streaming, origin: Origin, headers: dict[str, str]) -> AsyncGenerator[bytes]:
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
