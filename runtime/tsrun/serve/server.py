"""What `tsrun serve` does: starts the engine's process, then HTTP; on a signal takes no more, lets what runs end, and ends."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from tsrun.artifact import Manifest, read_manifest
from tsrun.errors import ArtifactError, MachineError, UsageError
from tsrun.generate import resolve, say
from tsrun.limits import LimitOptions
from tsrun.parsing import Choice, choose, named
from tsrun.serve.admission import Admission
from tsrun.serve.auth import ApiKey, Gate
from tsrun.serve.engine_client import EngineClient, EngineProcess
from tsrun.serve.front import Front
from tsrun.serve.health import Health
from tsrun.serve.routes import application
from tsrun.tokenizer import Tokenizer

_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command line of `tsrun serve`, typed. drain_seconds: for requests under way, when the server is told to end."""

    path: Path
    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    max_waiting: int = 1024
    max_requests_per_key: int | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    drain_seconds: float = 30.0
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    mesh: str | None = None
    dtype: str | None = None
    limits: LimitOptions = field(default_factory=LimitOptions)
    threads: int | None = None


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    _check(options)
    began = time.perf_counter()
    path = resolve(options.path, options.mesh, options.dtype)
    manifest = read_manifest(path)
    if "tokenizer/tokenizer.json" not in manifest.files:
        what = "has no tokenizer, since its checkpoint had none"
        raise ArtifactError(str(path), what, "compile a checkpoint with tokenizer.json")
    listening = _listen(options.host, options.port)
    process = EngineProcess(path, options.limits, options.threads)
    try:
        asyncio.run(_run(options, path, manifest, process, listening, began))
    finally:
        process.end()


async def _run(
    options: ServeOptions, path: Path, manifest: Manifest, process: EngineProcess, listening: socket.socket, began: float
) -> None:
    engine = EngineClient(process)
    tokenizer = asyncio.create_task(asyncio.to_thread(Tokenizer, path / "tokenizer"))
    try:
        ready = await engine.connect()
        reader = await tokenizer
        admission = Admission(ready.max_sequences + options.max_waiting, options.max_requests_per_key)
        choice = _parsers(options, reader, manifest)
        front = Front(options.model_name or _name(options.path, manifest), reader, engine, ready, manifest.vocabulary, choice, admission)
        app = Gate(application(front, Health(front)), [ApiKey.of(f"key {n}", key) for n, key in enumerate(options.api_keys, 1)])
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=None,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                ssl_certfile=options.ssl_certfile,
                ssl_keyfile=options.ssl_keyfile,
                server_header=False,
            )
        )
        host, port = listening.getsockname()[:2]
        scheme = "https" if options.ssl_certfile else "http"
        say(f"{front.model} at {scheme}://{f'[{host}]' if ':' in host else host}:{port}, ready in {time.perf_counter() - began:.1f} s")
        await _serve_until_told(server, front, listening, options.drain_seconds)
        front.close()
    finally:
        await engine.close(at_once=True)


class _Server(uvicorn.Server):
    """One that a signal does not end: it is noted, and what runs may end first. A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.told.is_set():
            self.force_exit = self.should_exit = True
        self._loop.call_soon_threadsafe(self.told.set)


async def _serve_until_told(server: _Server, front: Front, listening: socket.socket, drain_seconds: float) -> None:
    serving = asyncio.create_task(server.serve([listening]))
    failing = asyncio.create_task(_failure(front.engine))
    told = asyncio.create_task(server.told.wait())
    await asyncio.wait((serving, failing, told), return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        front.is_draining = True
        if front.engine.num_open:
            say(f"shutting down when {front.engine.num_open} requests have ended")
        ends = time.monotonic() + drain_seconds
        while front.engine.num_open and time.monotonic() < ends and not server.force_exit:
            await asyncio.sleep(0.02)
    server.should_exit = True
    server.force_exit = server.force_exit or front.engine.num_open > 0
    await serving
    for task in (failing, told):
        task.cancel()
    if front.engine.failure is not None:
        raise MachineError("engine", front.engine.failure, "start the server again")


def _parsers(options: ServeOptions, tokenizer: Tokenizer, manifest: Manifest) -> Choice:
    """Those that were named, and for what was not named those that the checkpoint's template shows."""
    found = choose(tokenizer.template_source, manifest.model.name)
    if options.tool_parser is None and options.reasoning_parser is None:
        return found
    return named(tools=options.tool_parser or found.tools, reasoning=options.reasoning_parser or found.reasoning)


async def _failure(engine: EngineClient) -> None:
    while engine.failure is None:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # for the answers that say so


def _check(options: ServeOptions) -> None:
    if not options.api_keys and not options.insecure and not _is_loopback(options.host):
        what = f"anyone who reaches {options.host} could use the model"
        raise UsageError("--host", what, "give --api-key KEY, or --insecure where that is meant")
    if (options.ssl_certfile is None) != (options.ssl_keyfile is None):
        raise UsageError("--ssl-certfile and --ssl-keyfile", "one is given without the other", "give both")
    for file in (options.ssl_certfile, options.ssl_keyfile):
        if file is not None and not file.is_file():
            raise UsageError(str(file), "is not a file", "give the path of a PEM file")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise MachineError(f"{host}:{port}", f"can not listen there ({error.strerror})", "give another --port or --host") from None
    return listening


def _name(path: Path, manifest: Manifest) -> str:
    return path.stem if path.suffix == ".tsa" else path.name or manifest.model.name
