"""A trace of each request, by OpenTelemetry's protocol over HTTP: a span of its own, with its time in the queue, its prompt and its tokens
below. Names of attributes are those of the semantic conventions for generative models."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from threading import Thread
from typing import Any

from tsrun.errors import MachineError, UsageError
from tsrun.generation import Phase
from tsrun.serve.records import Outcome, Record

log = logging.getLogger("tsrun.serve")
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PATH = "/v1/traces"
_END_SECONDS = 2.0
"""For what is left of the traces when the server ends."""


def traces_to(endpoint: str | None, model: str) -> Tracer | None:
    """None where neither the command line nor the environment says where traces go. Without OpenTelemetry MachineError for the first; the
    second may be meant for others, and is warned of."""
    given = "--otlp-endpoint" if endpoint is not None else next((name for name in _VARIABLES if os.environ.get(name)), None)
    if given is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise UsageError("--otlp-endpoint", f"got {endpoint}", "give an URL, such as http://localhost:4318")
    try:
        return Tracer(endpoint, model)
    except ImportError as error:
        missing = MachineError(given, f"the package `{error.name}` is not installed", "pip install 'tsc-llm[otel]'")
        if endpoint is not None:
            raise missing from None
        log.warning("%s", missing.line)
        return None


@asynccontextmanager
async def traces_while(endpoint: str | None, model: str) -> AsyncIterator[Tracer | None]:
    """Where traces go, if anywhere; what is left of them is sent with the end of the block, or dropped where
    that takes long. Raises as `traces_to` does."""
    traces = traces_to(endpoint, model)
    try:
        yield traces
    finally:
        if traces is not None:
            # A thread that nobody waits for: a collector that does not answer may take half a minute to be given up.
            closing = Thread(target=traces.close, name="tsrun-traces", daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, _END_SECONDS)


class Tracer:
    """Sends spans from a thread of its own, several at once; what it can not send it drops, with a warning.

    endpoint: of a collector; the environment says what it does not, as the SDK has it (headers, sampling, the name of the service).
    """

    def __init__(self, endpoint: str | None, model: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        whole = None if endpoint is None else endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH
        resource = Resource({SERVICE_NAME: "tsrun"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(whole)))
        self._tracer = self._provider.get_tracer("tsrun.serve")
        self._parents = TraceContextTextMapPropagator()
        self._model = model

    def give(self, record: Record) -> None:
        """Of a request that is over."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        wall = time.time_ns() - time.monotonic_ns()

        def at(seconds: float) -> int:
            return int(seconds * 1e9) + wall

        parent = self._parents.extract({name.decode("latin-1"): value for name, value in record.headers.items()})
        name = f"{record.operation} {self._model}"
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, self._attributes(record), start_time=at(record.began))
        if record.failed:
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span)
        for choice, outcome in enumerate(record.outcomes):
            for phase, begin, end in _phases(outcome, record.ended):
                child = self._tracer.start_span(phase, below, attributes={"tsrun.choice": choice}, start_time=at(begin))
                child.end(at(end))
        span.end(at(record.ended))

    def close(self) -> None:
        """Send what is left; in a thread, since it may take as long as the collector does."""
        self._provider.shutdown()

    def _attributes(self, record: Record) -> dict[str, Any]:
        usage = record.usage
        found: dict[str, Any] = {
            "gen_ai.operation.name": record.operation,
            "gen_ai.provider.name": "tsrun",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.finish_reasons": record.finish_reasons or None,
            "gen_ai.usage.input_tokens": usage and usage.prompt,
            "gen_ai.usage.output_tokens": usage and usage.completion,
            "gen_ai.usage.cache_read.input_tokens": usage and usage.cached,
            "url.path": record.path,
            "http.response.status_code": record.status if isinstance(record.status, int) else None,
            "rpc.grpc.status_code": record.status if isinstance(record.status, str) else None,
            "error.type": record.error,
            "tsrun.request_id": record.request_id,
            **record.asked,
        }
        return {name: value for name, value in found.items() if value is not None}


def _phases(outcome: Outcome, ended: float) -> list[tuple[Phase, float, float]]:
    """The engine does not say when an answer ended that nobody waited for: with the request."""
    times = outcome.times
    return [] if times is None else (times if times.ended is not None else replace(times, ended=ended)).phases()
