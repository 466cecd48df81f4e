"""What `tsrun serve` does: starts the engine's process, then HTTP or gRPC; on a signal takes no more, lets what runs end, and ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tsrun.artifact import Manifest, read_manifest
from tsrun.errors import ArtifactError, MachineError, TsrunError, UsageError
from tsrun.generate import resolve
from tsrun.limits import LimitOptions
from tsrun.parsing import Choice, choose, named
from tsrun.serve.admission import Admission
from tsrun.serve.auth import ApiKey, Gate
from tsrun.serve.engine_client import EngineClient, EngineProcess
from tsrun.serve.front import Front
from tsrun.serve.health import Health
from tsrun.serve.http_listener import HttpListener, listen_at
from tsrun.serve.lifetime import Told, end_on_sigterm, serve_until_told
from tsrun.serve.logs import LogOptions, configure
from tsrun.serve.metrics import Metrics
from tsrun.serve.observing import Observed, Observer
from tsrun.serve.routes import application, probes
from tsrun.serve.tracing import Tracer, traces_to
from tsrun.tokenizer import Tokenizer

First = TypeVar("First")
Second = TypeVar("Second")
log = logging.getLogger("tsrun.serve")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command line of `tsrun serve`, typed. grpc: be a worker of a gateway, with HTTP at `metrics_port` for probes alone;
    drain_seconds: for requests under way, when the server is told to end; watchdog_seconds: without progress, 0 for any; otlp_endpoint: of
    a collector of traces."""

    path: Path
    host: str = "127.0.0.1"
    port: int = 8000
    grpc: bool = False
    metrics_port: int | None = None
    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    max_waiting: int = 1024
    max_requests_per_key: int | None = None
    drops_nonces: bool = True
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    drain_seconds: float = 30.0
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    mesh: str | None = None
    dtype: str | None = None
    entry: str | None = None
    limits: LimitOptions = field(default_factory=LimitOptions)
    threads: int | None = None
    watchdog_seconds: float = 60.0
    logs: LogOptions = field(default_factory=LogOptions)
    otlp_endpoint: str | None = None


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM. SystemExit where one comes before that, and after an error that the log tells of."""
    _check(options)
    configure(options.logs)
    try:
        _serve(options)
    except TsrunError as error:
        log.error("%s", error.line, exc_info=bool(os.environ.get("TSRUN_DEBUG")))
        raise SystemExit(error.exit_code) from None


def _serve(options: ServeOptions) -> None:
    began = time.perf_counter()
    end_on_sigterm()
    path = resolve(options.path, options.mesh, options.dtype, options.entry, log.info)
    manifest = read_manifest(path)
    if "tokenizer/tokenizer.json" not in manifest.files:
        what = "has no tokenizer, since its checkpoint had none"
        raise ArtifactError(str(path), what, "compile a checkpoint with tokenizer.json")
    if options.grpc and manifest.gives == "embeddings":
        raise UsageError("--grpc", "the gateway's protocol has no embeddings, which this model gives", "serve it over HTTP")
    asyncio.run((_serve_grpc if options.grpc else _serve_http)(options, path, manifest, began))


async def _serve_http(options: ServeOptions, path: Path, manifest: Manifest, began: float) -> None:
    told = Told()
    listening = listen_at(options.host, options.port)
    model = options.model_name or _name(options.path, manifest)
    async with _traces(options, model) as traces, _engine(options, path) as engine:
        reader, ready = await told.before(_both(asyncio.to_thread(Tokenizer, path / "tokenizer"), engine.connect()))
        admission = Admission(ready.max_sequences + options.max_waiting, options.max_requests_per_key)
        choice = _parsers(options, reader, manifest)
        front = Front(model, reader, engine, ready, manifest.vocabulary, choice, admission)
        front.drops_nonces = options.drops_nonces
        front.embedding = manifest.embedding
        keys = [ApiKey.of(f"key {n}", key) for n, key in enumerate(options.api_keys, 1)]
        observer = Observer(model, front.metrics, traces)
        app = Observed(Gate(application(front, Health(front)), keys), observer, [key.name for key in keys])
        listener = HttpListener(app, listening, options.ssl_certfile, options.ssl_keyfile)
        log.info("%s at %s, ready in %.1f s", model, listener.url, time.perf_counter() - began)
        await serve_until_told([listener], front, told, options.drain_seconds)
        front.close()


async def _serve_grpc(options: ServeOptions, path: Path, manifest: Manifest, began: float) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said here, in one line
    try:  # only who is a worker needs them
        from tsrun.serve.grpc_listener import GrpcListener
        from tsrun.serve.grpc_worker import Worker
        from tsrun.serve.worker_facts import WorkerFacts
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        raise MachineError("--grpc", f"the package `{name}` is not installed", "pip install 'tsc-llm[smg]'") from None
    told = Told()
    probing = [] if options.metrics_port is None else [listen_at(options.host, options.metrics_port)]
    listener = GrpcListener(options.host, options.port)
    model = options.model_name or _name(options.path, manifest)
    async with _traces(options, model) as traces, _engine(options, path) as engine:
        ready = await told.before(engine.connect())
        metrics = Metrics(model, engine, ready)
        facts = WorkerFacts(model, manifest, options.limits, engine, ready, metrics)
        observer = Observer(model, metrics, traces)
        worker = Worker(engine, metrics, facts, path / "tokenizer", observer)
        listener.add(worker)
        beside = [HttpListener(Observed(probes(worker.health, metrics), observer), listening) for listening in probing]
        also = f" (metrics at {beside[0].url})" if beside else ""
        log.info("%s at %s%s, ready in %.1f s", model, listener.url, also, time.perf_counter() - began)
        await serve_until_told([listener, *beside], worker, told, options.drain_seconds)


@asynccontextmanager
async def _engine(options: ServeOptions, path: Path) -> AsyncIterator[EngineClient]:
    """The engine in a process of its own, which ends with the block."""
    log.info("loading %s", path.name)
    process = EngineProcess(
        path,
        options.limits,
        options.threads,
        LogOptions(options.logs.shown_as, options.logs.level),
        watchdog_seconds=options.watchdog_seconds,
        follows_pages=options.grpc,
    )
    try:
        engine = EngineClient(process)
        try:
            yield engine
        finally:
            await engine.close(at_once=True)
    finally:
        process.end()


@asynccontextmanager
async def _traces(options: ServeOptions, model: str) -> AsyncIterator[Tracer | None]:
    """Where traces go, if anywhere; what is left of them is sent with the end of the block."""
    traces = traces_to(options.otlp_endpoint, model)
    try:
        yield traces
    finally:
        if traces is not None:
            await asyncio.to_thread(traces.close)


async def _both(first: Awaitable[First], second: Awaitable[Second]) -> tuple[First, Second]:
    """The results of what goes on at once."""
    one, other = await asyncio.gather(first, second)
    return one, other


def _parsers(options: ServeOptions, tokenizer: Tokenizer, manifest: Manifest) -> Choice:
    """Those that were named, and for what was not named those that the checkpoint's template shows."""
    found = choose(tokenizer.template_source, manifest.model.name)
    if options.tool_parser is None and options.reasoning_parser is None:
        return found
    return named(tools=options.tool_parser or found.tools, reasoning=options.reasoning_parser or found.reasoning)


def _check(options: ServeOptions) -> None:
    if "" in options.api_keys:
        raise UsageError("--api-key", "an empty key would let everyone in", "give another, or leave it out")
    if not options.api_keys and not options.insecure and not _is_loopback(options.host):
        what = f"anyone who reaches {options.host} could use the model"
        raise UsageError("--host", what, "give --api-key KEY, or --insecure where that is meant")
    if options.grpc:
        _check_worker(options)
    elif options.metrics_port is not None:
        raise UsageError("--metrics-port", "HTTP has its metrics at --port", "leave it out, or give --grpc")
    if (options.ssl_certfile is None) != (options.ssl_keyfile is None):
        raise UsageError("--ssl-certfile and --ssl-keyfile", "one is given without the other", "give both")
    for file in (options.ssl_certfile, options.ssl_keyfile):
        if file is not None and not file.is_file():
            raise UsageError(str(file), "is not a file", "give the path of a PEM file")


def _check_worker(options: ServeOptions) -> None:
    given = {
        "--api-key": (options.api_keys, "a gateway sends its workers none"),
        "--ssl-certfile": (options.ssl_certfile, "a worker speaks to its gateway in the clear"),
        "--keep-nonces": (not options.drops_nonces, "the gateway renders prompts"),
        "--tool-parser": (options.tool_parser, "the gateway reads calls"),
        "--reasoning-parser": (options.reasoning_parser, "the gateway reads reasoning"),
    }
    for name, (value, why) in given.items():
        if value:
            raise UsageError(name, f"given with --grpc, but {why}", "leave it out, and give it to the gateway")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(path: Path, manifest: Manifest) -> str:
    return path.stem if path.suffix == ".tsa" else path.name or manifest.model.name
