"""Chat completions of any server with OpenAI's API, read as streams: what came, and when. Light, so that it takes little of the machine
that the server runs on."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tsrun.errors import UsageError

_CHAT = "/v1/chat/completions"
_MOST_ERROR_BYTES = 4096


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Timings(msgspec.Struct):
    """llama.cpp's: tokens of the prompt that were found, and that were computed."""

    cache_n: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Answer:
    """Of one request. Times are seconds of `time.perf_counter`; pieces: when each piece of the answer came; cached_tokens: None where the
    server does not say; status: of HTTP, 0 where there was no answer at all."""

    sent: float
    status: int = 0
    error: str = ""
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    cancelled: bool = False

    @property
    def failed(self) -> bool:
        return self.status != 200 or bool(self.error)


class Client:
    """Of one server. Raises UsageError where the URL is none."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("--url", f"{url} is no address of a server", "give one like http://127.0.0.1:8000")
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = f"host: {parts.netloc}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        if api_key is not None:
            self._headers += f"authorization: Bearer {api_key}\r\n"

    async def models(self) -> list[str]:
        """Names of what the server has."""
        reader, writer = await self._connect()
        try:
            writer.write(f"GET {self._base}/v1/models HTTP/1.1\r\n{self._headers}\r\n".encode())
            status, chunked = await _head(reader)
            body = b"".join([part async for part in _body(reader, chunked=chunked)])
        finally:
            writer.close()
        if status != 200:
            raise UsageError("--url", f"/v1/models answers {status}", "give the address of a server with OpenAI's API (and its --api-key)")
        return [str(one["id"]) for one in msgspec.json.decode(body)["data"]]

    async def chat(self, body: dict[str, Any], cancel_after: int | None = None) -> Answer:
        """One request, its answer read as it comes; cancel_after: pieces after which the connection is closed."""
        raw = msgspec.json.encode({**body, "stream": True, "stream_options": {"include_usage": True}})
        answer = Answer(time.perf_counter())
        writer = None
        try:
            reader, writer = await self._connect()
            head = f"POST {self._base}{_CHAT} HTTP/1.1\r\n{self._headers}content-length: {len(raw)}\r\n\r\n"
            writer.write(head.encode() + raw)
            answer.status, chunked = await _head(reader)
            if answer.status != 200:
                found = b"".join([part async for part in _body(reader, chunked=chunked)])
                answer.error = found[:_MOST_ERROR_BYTES].decode(errors="replace")
            else:
                await _read(answer, _body(reader, chunked=chunked), cancel_after)
        except (OSError, EOFError, ValueError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            answer.error = answer.error or str(error) or type(error).__name__
        finally:
            if writer is not None:
                writer.close()
        answer.ended = time.perf_counter()
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context() if self._secure else None
        return await asyncio.open_connection(self._host, self._port, ssl=context)


async def _read(answer: Answer, parts: AsyncIterator[bytes], cancel_after: int | None) -> None:
    pending, texts = b"", list[str]()
    calls: dict[int, dict[str, Any]] = {}
    async for part in parts:
        now = time.perf_counter()
        *lines, pending = (pending + part).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]" or not data:
                continue
            chunk = _decode(data)
            if chunk.error is not None:
                answer.error = str(chunk.error)
            if chunk.usage is not None:
                answer.prompt_tokens, answer.completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
                if chunk.usage.prompt_tokens_details is not None:
                    answer.cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
            if chunk.timings is not None and chunk.timings.cache_n is not None:
                answer.cached_tokens = chunk.timings.cache_n
            for choice in chunk.choices:
                delta = choice.delta
                if delta.content or delta.tool_calls or delta.reasoning_content or delta.reasoning:
                    answer.pieces.append(now)
                    texts.append(delta.content or "")
                    for call in delta.tool_calls or []:
                        _add(calls, call)
        if cancel_after is not None and len(answer.pieces) >= cancel_after:
            answer.cancelled, answer.completion_tokens = True, len(answer.pieces)
            break
    answer.text, answer.calls = "".join(texts), [calls[index] for index in sorted(calls)]


def _add(calls: dict[int, dict[str, Any]], call: _Call) -> None:
    made = calls.setdefault(call.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    made["id"] = call.id or made["id"]
    if call.function is not None:
        made["function"]["name"] += call.function.name or ""
        made["function"]["arguments"] += call.function.arguments or ""


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the body comes in chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    chunked = any(line.lower().replace(" ", "") == "transfer-encoding:chunked" for line in rest)
    return int(first.split(" ")[1]), chunked


async def _body(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    """To its end, which is the connection's."""
    while not chunked and (part := await reader.read(65536)):
        yield part
    while chunked:
        size = int((await reader.readline()).split(b";")[0], 16)
        part = await reader.readexactly(size + 2)
        if not size:
            return
        yield part[:-2]
