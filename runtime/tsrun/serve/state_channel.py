"""Between the server's first process and another that speaks HTTP: msgpack over a pair of sockets that only these two have.

The other one asks the shared state (`shared_state.py`), many questions at once and none waiting for another; the first one tells it what
it is to do, and when to end. When either has gone, the other sees the end of the stream.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

import msgspec

from tsrun.errors import TsrunError
from tsrun.serve.http_errors import HttpError
from tsrun.serve.shared_state import REPLIES, AnyQuestion, FindTokens, LocalState, Question

Reply = TypeVar("Reply")
Message = TypeVar("Message")
_SIZE = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(reply) for kind, reply in REPLIES.items()}


class Asked(msgspec.Struct, tag=True):
    """number: of the answer, None where nobody waits for one."""

    number: int | None
    question: AnyQuestion


class Serving(msgspec.Struct, tag=True):
    """HTTP is answered from now on."""


class Failed(msgspec.Struct, tag=True):
    """Why the process ends: the parts of a `TsrunError`."""

    where: str
    what: str
    mend: str
    exit_code: int

    @classmethod
    def of(cls, error: TsrunError) -> Failed:
        return cls(error.where, error.what, error.mend, error.exit_code)

    def error(self) -> TsrunError:
        error = TsrunError(self.where, self.what, self.mend)
        error.exit_code = self.exit_code
        return error


class Answered(msgspec.Struct, tag=True):
    number: int
    reply: msgspec.Raw


class Refused(msgspec.Struct, tag=True):
    """The parts of an `HttpError`."""

    number: int
    status: int
    message: str
    param: str | None
    code: str | None
    retry_after: int | None
    more_headers: dict[str, str]

    def error(self) -> HttpError:
        return HttpError(
            self.status, self.message, param=self.param, code=self.code, retry_after=self.retry_after, more_headers=self.more_headers
        )


class EngineStuck(msgspec.Struct, tag=True):
    """It has requests of the process, and said nothing for so long."""

    seconds: float


class EngineFailed(msgspec.Struct, tag=True):
    line: str


class End(msgspec.Struct, tag=True):
    """Take no more, and end when what runs has ended, or at once."""

    at_once: bool


FromOther = Asked | Serving | EngineStuck | Failed
FromFirst = Answered | Refused | EngineFailed | End


def framed(message: Any) -> bytes:
    data = _encoder.encode(message)
    return _SIZE.pack(len(data)) + data


class Channel(Generic[Message]):
    """One end of it: an asynchronous iterator of what comes, to the end of the stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, form: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(form)

    @classmethod
    async def open(cls, ours: socket.socket, form: Any) -> Self:
        """form: of what comes. The socket is the channel's from now on."""
        return cls(*await asyncio.open_connection(sock=ours), form)

    def send(self, message: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(framed(message))

    async def receive(self) -> bytes:
        """One message as it came. EOFError at the end of the stream."""
        try:
            (size,) = _SIZE.unpack(await self._reader.readexactly(_SIZE.size))
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            try:
                data = await self.receive()
            except EOFError:
                return
            yield self._decoder.decode(data)

    def close(self) -> None:
        self._writer.close()


class RemoteState:
    """The state of the first process, as another one asks it."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel
        self._waiting: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._next = 0
        self._is_over = False

    async def ask(self, question: Question[Reply]) -> Reply:
        if self._is_over:
            raise _over()
        number, self._next = self._next, self._next + 1
        coming = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(Asked(number, question))  # type: ignore[arg-type]
            data = await coming
        finally:
            del self._waiting[number]
        decoder = _decoders.get(type(question))
        found: Any = None if decoder is None else decoder.decode(data)
        reply: Reply = found
        return reply

    def tell(self, question: Question[None]) -> None:
        self._channel.send(Asked(None, question))  # type: ignore[arg-type]

    def take(self, message: Answered | Refused) -> None:
        coming = self._waiting.get(message.number)
        if coming is None or coming.done():  # who asked has gone
            return
        if isinstance(message, Answered):
            coming.set_result(message.reply)
        else:
            coming.set_exception(message.error())

    def fail(self) -> None:
        """Nothing will come any more."""
        self._is_over = True
        for coming in self._waiting.values():
            if not coming.done():
                coming.set_exception(_over())


def _over() -> HttpError:
    return HttpError(503, "the server is shutting down", retry_after=10)


class Answering:
    """Answers what comes on a channel, each as it is asked: a long text is looked for beside what comes after it."""

    def __init__(self, channel: Channel[Any], state: LocalState) -> None:
        self._channel = channel
        self._state = state
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, asked: Asked) -> None:
        if isinstance(asked.question, FindTokens):
            task = asyncio.create_task(self._answer(asked))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            await self._answer(asked)

    async def _answer(self, asked: Asked) -> None:
        number = 0 if asked.number is None else asked.number
        try:
            question: Question[Any] = asked.question
            reply = await self._state.ask(question)
            message: Answered | Refused = Answered(number, msgspec.Raw(_encoder.encode(reply)))
        except HttpError as error:
            message = Refused(number, error.status, error.message, error.param, error.code, error.retry_after, dict(error.more_headers))
        if asked.number is not None:
            self._channel.send(message)
