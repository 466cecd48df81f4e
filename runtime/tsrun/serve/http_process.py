"""What a process that speaks HTTP does. The server's first process is one, and may start others: `python -m tsrun.serve.http_process`.

All of them take connections from one listening socket, each has a connection of its own to the engine, and what requests have in common
is in the first one (`shared_state.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path

import msgspec

from tsrun.artifact import Manifest, read_manifest
from tsrun.errors import TsrunError
from tsrun.memory import keep_for_good
from tsrun.parsing import Choice, choose, named
from tsrun.serve.auth import ApiKey, Gate
from tsrun.serve.engine_client import EngineClient, EngineElsewhere
from tsrun.serve.front import Front
from tsrun.serve.health import Health
from tsrun.serve.http_listener import HttpListener
from tsrun.serve.lifetime import Told, serve_until_told
from tsrun.serve.logs import LogOptions, configure
from tsrun.serve.messages import Ready
from tsrun.serve.observing import Observed, Observer
from tsrun.serve.routes import application
from tsrun.serve.shared_state import State
from tsrun.serve.state_channel import Answered, Channel, End, EngineFailed, EngineStuck, Failed, FromFirst, Refused, RemoteState, Serving
from tsrun.serve.tracing import Tracer, traces_while
from tsrun.serve.watchdog import silence
from tsrun.tokenizer import Tokenizer


class HttpSpec(msgspec.Struct):
    """What all of them are told. engine: its address; secret: of the `Gate`."""

    path: str
    model: str
    engine: str
    keys: list[ApiKey]
    secret: bytes
    drops_nonces: bool
    chat_template: str | None
    tool_parser: str | None
    reasoning_parser: str | None
    drain_seconds: float
    watchdog_seconds: float
    logs: LogOptions
    otlp_endpoint: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None


class HttpSide:
    """The front end of one process. The tokenizer is read while the engine starts."""

    def __init__(self, spec: HttpSpec, traces: Tracer | None) -> None:
        self._spec = spec
        self._traces = traces
        path = Path(spec.path)
        self._manifest = read_manifest(path)
        self._tokenizer = asyncio.create_task(asyncio.to_thread(Tokenizer, path / "tokenizer", spec.chat_template))

    async def open(self, engine: EngineClient, ready: Ready, state: State) -> Front:
        spec, manifest, tokenizer = self._spec, self._manifest, await self._tokenizer
        choice = _parsers(spec, tokenizer, manifest)
        front = Front(spec.model, tokenizer, engine, ready, manifest.vocabulary, choice, state)
        front.drops_nonces = spec.drops_nonces
        front.embedding = manifest.embedding
        keep_for_good()
        return front

    def listener(self, front: Front, listening: socket.socket) -> HttpListener:
        spec = self._spec
        gate = Gate(application(front, Health(front)), spec.keys, spec.secret)
        app = Observed(gate, Observer(spec.model, front.metrics, self._traces), [key.name for key in spec.keys])
        cert, key = (None if file is None else Path(file) for file in (spec.ssl_certfile, spec.ssl_keyfile))
        return HttpListener(app, listening, cert, key)


def _parsers(spec: HttpSpec, tokenizer: Tokenizer, manifest: Manifest) -> Choice:
    """Those that were named, and for what was not named those that the chat template shows."""
    found = choose(tokenizer.template_source, manifest.model.name)
    if spec.tool_parser is None and spec.reasoning_parser is None:
        return found
    return named(tools=spec.tool_parser or found.tools, reasoning=spec.reasoning_parser or found.reasoning)


async def _serve(ours: socket.socket, listening: socket.socket) -> None:
    """Until the first process says so, or has gone."""
    channel: Channel[FromFirst] = await Channel.open(ours, FromFirst)
    try:
        spec = msgspec.msgpack.decode(await channel.receive(), type=HttpSpec)
        configure(spec.logs)
        engine = EngineClient(EngineElsewhere(spec.engine, spec.watchdog_seconds))
        state, told = RemoteState(channel), Told()
        listen = asyncio.create_task(_listen(channel, state, engine, told))
        work = asyncio.create_task(_answer_http(spec, engine, state, channel, told, listening))
        try:
            await asyncio.wait((listen, work), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # the first process has gone
                told.end(at_once=True)
                await asyncio.wait((work,), timeout=1)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        except TsrunError as error:
            channel.send(Failed.of(error))
        finally:
            listen.cancel()
            await engine.close(at_once=True)
    except EOFError:
        pass
    finally:
        channel.close()


async def _answer_http(
    spec: HttpSpec, engine: EngineClient, state: RemoteState, channel: Channel[FromFirst], told: Told, listening: socket.socket
) -> None:
    async with traces_while(spec.otlp_endpoint, spec.model) as traces:
        side = HttpSide(spec, traces)
        front = await side.open(engine, await engine.connect(), state)
        channel.send(Serving())
        watching = asyncio.create_task(_watch(engine, channel))
        await serve_until_told([side.listener(front, listening)], front, told, spec.drain_seconds)
        watching.cancel()
        front.close()


async def _watch(engine: EngineClient, channel: Channel[FromFirst]) -> None:
    """The engine is the first process's to end, which may have no request of its own that it hears nothing of."""
    if engine.watchdog_seconds:
        channel.send(EngineStuck(await silence(engine)))


async def _listen(channel: Channel[FromFirst], state: RemoteState, engine: EngineClient, told: Told) -> None:
    async for message in channel:
        match message:
            case Answered() | Refused():
                state.take(message)
            case EngineFailed(line):
                engine.fail(line)
            case End(at_once):
                told.end(at_once=at_once)
    state.fail()


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # which all processes of a server may get: the first one says when to end
        signal.signal(number, signal.SIG_IGN)
    ours, listening = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    asyncio.run(_serve(ours, listening))
    return 0


if __name__ == "__main__":
    sys.exit(main())
