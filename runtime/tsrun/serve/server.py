"""What `tsrun serve` does: starts the engine's process, then HTTP or gRPC; on a signal takes no more, lets what runs end, and ends."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsrun.artifact import Manifest, read_manifest
from tsrun.errors import ArtifactError, InputError, MachineError, TsrunError, UsageError
from tsrun.generate import resolve, with_resolved_draft
from tsrun.limits import LimitOptions
from tsrun.own_folder import OwnFolder
from tsrun.serve.admission import Admission
from tsrun.serve.engine_client import EngineClient, EngineProcess
from tsrun.serve.http_listener import HttpListener, listen_at
from tsrun.serve.lifetime import Told, end_on_sigterm, serve_until_told
from tsrun.serve.logs import LogOptions, configure
from tsrun.serve.shared_state import LocalState
from tsrun.serve.token_limits import TokenLimits
from tsrun.serve.tracing import traces_while

if TYPE_CHECKING:
    from tsrun.serve.front import Front
    from tsrun.serve.http_process import HttpSide, HttpSpec
    from tsrun.serve.http_processes import HttpProcess

log = logging.getLogger("tsrun.serve")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command line of `tsrun serve`, typed. grpc: be a worker of a gateway, with HTTP at `metrics_port` for probes alone;
    drain_seconds: for requests under way, when the server is told to end; watchdog_seconds: without progress, 0 for any; otlp_endpoint: of
    a collector of traces."""

    path: Path
    host: str = "127.0.0.1"
    port: int = 8000
    http_processes: int = 1
    grpc: bool = False
    metrics_port: int | None = None
    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    max_waiting: int = 1024
    max_requests_per_key: int | None = None
    max_tokens_per_minute_per_key: int | None = None
    drops_nonces: bool = True
    chat_template: Path | None = None
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
    path = resolve(options.path, options.mesh, options.dtype, options.entry, log.info, options.limits.max_context)
    options = replace(options, limits=with_resolved_draft(options.limits, log.info))
    manifest = read_manifest(path)
    if "tokenizer/tokenizer.json" not in manifest.files:
        what = "has no tokenizer, since its checkpoint had none"
        raise ArtifactError(str(path), what, "compile a checkpoint with tokenizer.json")
    if options.grpc and manifest.gives == "embeddings":
        raise UsageError("--grpc", "the gateway's protocol has no embeddings, which this model gives", "serve it over HTTP")
    with _counting_together() if options.http_processes > 1 else nullcontext():
        asyncio.run((_serve_grpc if options.grpc else _serve_http)(options, path, manifest, began))


@contextmanager
def _counting_together() -> Iterator[None]:
    """Processes that are started meanwhile count in one folder, and so does this one from here on: the library of metrics looks for it
    when it is imported, which is why all that counts is imported late."""
    folder = OwnFolder()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.path)
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        folder.close()


async def _serve_http(options: ServeOptions, path: Path, manifest: Manifest, began: float) -> None:
    from tsrun.serve.http_process import HttpSide
    from tsrun.serve.http_processes import HttpProcess

    told = Told.by_signals()
    listening = listen_at(options.host, options.port)
    model = options.model_name or _name(options.path, manifest)
    async with traces_while(options.otlp_endpoint, model) as traces, _engine(options, path) as engine:
        spec = _http_spec(options, model, path, engine.address)
        others: list[HttpProcess] = []
        try:
            others += (HttpProcess(number, spec, listening) for number in range(2, options.http_processes + 1))
            side = HttpSide(spec, traces)
            front = await told.before(_start(options, engine, side, others))
            listener = side.listener(front, listening)
            log.info("%s at %s, ready in %.1f s", model, listener.url, time.perf_counter() - began)
            await serve_until_told([listener], front, told, options.drain_seconds, others)
            front.close()
        finally:
            for other in others:
                other.close()


async def _start(options: ServeOptions, engine: EngineClient, side: HttpSide, others: Sequence[HttpProcess]) -> Front:
    """The front end of this process, when all that is behind it is there."""
    ready = await engine.connect()
    tokens = None if options.max_tokens_per_minute_per_key is None else TokenLimits(options.max_tokens_per_minute_per_key)
    state = LocalState(Admission(ready.max_sequences + options.max_waiting, options.max_requests_per_key, tokens))
    front = await side.open(engine, ready, state)
    for other in others:
        await other.connect(state)
    return front


def _http_spec(options: ServeOptions, model: str, path: Path, engine: str) -> HttpSpec:
    from tsrun.serve.auth import ApiKey
    from tsrun.serve.http_process import HttpSpec

    return HttpSpec(
        path=str(path),
        model=model,
        engine=engine,
        keys=[ApiKey.of(f"key {n}", key) for n, key in enumerate(options.api_keys, 1)],
        secret=secrets.token_bytes(16),
        drops_nonces=options.drops_nonces,
        chat_template=None if options.chat_template is None else options.chat_template.read_text(encoding="utf-8"),
        tool_parser=options.tool_parser,
        reasoning_parser=options.reasoning_parser,
        drain_seconds=options.drain_seconds,
        watchdog_seconds=options.watchdog_seconds,
        logs=LogOptions(options.logs.shown_as, options.logs.level),
        otlp_endpoint=options.otlp_endpoint,
        ssl_certfile=None if options.ssl_certfile is None else str(options.ssl_certfile),
        ssl_keyfile=None if options.ssl_keyfile is None else str(options.ssl_keyfile),
    )


async def _serve_grpc(options: ServeOptions, path: Path, manifest: Manifest, began: float) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said here, in one line
    try:  # only who is a worker needs them
        from tsrun.serve.grpc_listener import GrpcListener
        from tsrun.serve.grpc_worker import Worker
        from tsrun.serve.metrics import Metrics
        from tsrun.serve.observing import Observed, Observer
        from tsrun.serve.routes import probes
        from tsrun.serve.worker_facts import WorkerFacts
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        raise MachineError("--grpc", f"the package `{name}` is not installed", "pip install 'tsc-llm[smg]'") from None
    told = Told.by_signals()
    probing = [] if options.metrics_port is None else [listen_at(options.host, options.metrics_port)]
    listener = GrpcListener(options.host, options.port)
    model = options.model_name or _name(options.path, manifest)
    async with traces_while(options.otlp_endpoint, model) as traces, _engine(options, path) as engine:
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


def _check(options: ServeOptions) -> None:
    if "" in options.api_keys:
        raise UsageError("--api-key", "an empty key would let everyone in", "give another, or leave it out")
    if not options.api_keys and not options.insecure and not _is_loopback(options.host):
        what = f"anyone who reaches {options.host} could use the model"
        raise UsageError("--host", what, "give --api-key KEY, or --insecure where that is meant")
    for name, value in (("requests", options.max_requests_per_key), ("tokens-per-minute", options.max_tokens_per_minute_per_key)):
        if value is not None and not options.api_keys:
            raise UsageError(f"--max-{name}-per-key", "there are no API keys", "give --api-key KEY, or leave it out")
    if options.grpc:
        _check_worker(options)
    elif options.metrics_port is not None:
        raise UsageError("--metrics-port", "HTTP has its metrics at --port", "leave it out, or give --grpc")
    if options.chat_template is not None:
        from tsrun.chat_template import read_chat_template  # late: no start needs jinja2

        read_chat_template(options.chat_template)  # that it can be used
    if (options.ssl_certfile is None) != (options.ssl_keyfile is None):
        raise UsageError("--ssl-certfile and --ssl-keyfile", "one is given without the other", "give both")
    if options.ssl_certfile is not None and options.ssl_keyfile is not None:
        _check_certificate(options.ssl_certfile, options.ssl_keyfile)


def _check_certificate(certificate: Path, key: Path) -> None:
    """That they can be used, before a model is loaded for it."""
    import ssl  # late: few want it

    for file in (certificate, key):
        if not file.is_file():
            raise InputError(str(file), "is not a file", "give the path of a PEM file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # also of what is no PEM file, or of two that do not go together
        raise InputError(f"{certificate} and {key}", f"can not be used ({error})", "give a PEM file and its key") from None


def _check_worker(options: ServeOptions) -> None:
    given = {
        "--http-processes": (options.http_processes > 1, "a worker is one process"),
        "--api-key": (options.api_keys, "a gateway sends its workers none"),
        "--ssl-certfile": (options.ssl_certfile, "a worker speaks to its gateway in the clear"),
        "--keep-nonces": (not options.drops_nonces, "the gateway renders prompts"),
        "--chat-template": (options.chat_template, "the gateway renders prompts"),
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
