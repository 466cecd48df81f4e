"""`/metrics`, for Prometheus. A metric that means what one of vLLM's means has its name, so that dashboards for it work here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from tsrun.generation import Phase, Times
from tsrun.serve.engine_client import EngineClient
from tsrun.serve.messages import Ready
from tsrun.serve.usage import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_DELIVERY_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)


_SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment's variable for a folder in which all HTTP processes count together. The library reads it when it is imported."""


class Metrics:
    """Of the HTTP processes and the engine behind them."""

    def __init__(self, model: str, engine: EngineClient, ready: Ready) -> None:
        self._registry = CollectorRegistry()
        labels = ["model_name"]

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, [*labels, *more], registry=self._registry)

        def seconds(name: str, text: str, bounds: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, text, labels, registry=self._registry, buckets=bounds).labels(model)

        self._model = model
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts, cached ones too.").labels(model)
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens that were generated.").labels(model)
        self.known_tokens = counter("tsrun:known_tokens", "Tokens of prompts that were kept from earlier turns, not tokenized.").labels(
            model
        )
        self.cache_queries = counter("vllm:prefix_cache_queries", "Tokens of prompts that were looked for in the prefix cache.").labels(
            model
        )
        self.cache_hits = counter("vllm:prefix_cache_hits", "Of these, those that were there.").labels(model)
        self._success = counter("vllm:request_success", "Requests that ended.", "finished_reason")
        self._cache_misses = counter("tsrun:prefix_misses", "Turns of a session whose beginning was not in the cache.", "reason")
        self._unknown = counter("tsrun:unknown_fields", "Fields of requests that no API here knows.", "field")
        self.first_token = seconds("vllm:time_to_first_token_seconds", "From a request to its first token.")
        self.next_token = seconds("vllm:inter_token_latency_seconds", "From one token to the next.")
        self.delivery = seconds(
            "tsrun:delivery_seconds", "From the end of a step to its tokens being on their way to the client.", _DELIVERY_SECONDS
        )
        self.whole = seconds("vllm:e2e_request_latency_seconds", "From a request to its end.")
        self._phases: Mapping[Phase, Histogram] = {
            "queue": seconds("vllm:request_queue_time_seconds", "From a request reaching the engine to its first step."),
            "prefill": seconds("vllm:request_prefill_time_seconds", "From a request's first step to its first token."),
            "decode": seconds("vllm:request_decode_time_seconds", "From a request's first token to its end."),
        }
        self._responses = counter("tsrun:responses", "Answers to requests of any kind, 499 where nobody waited for it.", "status")
        self._all = self._registry
        if _SHARED_FOLDER in os.environ:
            self._all = CollectorRegistry()
            MultiProcessCollector(self._all)  # type: ignore[no-untyped-call]
        self._all.register(_EngineCollector(model, engine, ready))

    def end(self, reason: str, usage: Usage, times: Times | None) -> None:
        """A request has ended. times: as far as they are known."""
        for phase, began, ended in () if times is None else times.phases():
            self._phases[phase].observe(ended - began)
        self._success.labels(self._model, reason).inc()
        self.prompt_tokens.inc(usage.prompt)
        self.generation_tokens.inc(usage.completion)
        self.cache_queries.inc(usage.prompt)
        self.cache_hits.inc(usage.cached)
        if usage.miss is not None:
            self._cache_misses.labels(self._model, usage.miss).inc()

    def response(self, status: int | str | None) -> None:
        self._responses.labels(self._model, str(status)).inc()

    def prompt_counts(self) -> tuple[int, int]:
        """Tokens of prompts, and of these those that were cached."""
        names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
        looked_for, found = (self._all.get_sample_value(name, {"model_name": self._model}) for name in names)
        return int(looked_for or 0), int(found or 0)

    def unknown_field(self, name: str) -> None:
        self._unknown.labels(self._model, name).inc()

    @property
    def hit_rate(self) -> float:
        """Of all tokens of prompts the share that was in the prefix cache."""
        looked_for, found = self.prompt_counts()
        return found / max(1, looked_for)

    def text(self) -> bytes:
        return generate_latest(self._all)


class Latency:
    """When the tokens of one request come, from now on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.monotonic()
        self._last = 0.0

    def take(self, num_tokens: int) -> None:
        """So many have come together."""
        if not num_tokens:
            return
        now = time.monotonic()
        if self._last == 0.0:
            self._metrics.first_token.observe(now - self._began)
        for _ in range(num_tokens if self._last else 0):
            self._metrics.next_token.observe((now - self._last) / num_tokens)
        self._last = now

    def end(self) -> None:
        self._metrics.whole.observe(time.monotonic() - self._began)


class _EngineCollector(Collector):
    """What the engine said last of itself."""

    def __init__(self, model: str, engine: EngineClient, ready: Ready) -> None:
        self._model = model
        self._engine = engine
        self._pages = ready.num_pages

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        found = self._engine.statistics
        if found is None:
            return
        used = self._pages - found.load.free_pages
        gauges = (
            ("vllm:num_requests_running", "Requests in steps.", found.load.running),
            ("vllm:num_requests_waiting", "Requests that wait for pages or a place.", found.load.waiting),
            ("vllm:kv_cache_usage_perc", "Share of the cache's pages that requests hold, from 0 to 1.", used / self._pages),
            ("tsrun:cached_pages", "Pages that no request holds, with prompts that may come again.", found.load.cached_pages),
        )
        counters = (
            ("vllm:num_preemptions", "Requests that gave their pages to others and began anew.", found.load.preemptions),
            ("vllm:spec_decode_num_drafts", "Drafts of what a request's next tokens may be.", found.speculated.drafts),
            ("vllm:spec_decode_num_draft_tokens", "Tokens of these drafts.", found.speculated.draft_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Of these tokens those that came.", found.speculated.accepted_tokens),
            ("tsrun:steps", "Steps of the engine.", found.steps),
            ("tsrun:stuck_requests", "Requests that the watchdog ended, since no step brought them forward.", found.stuck),
            ("tsrun:busy_seconds", "Seconds that the engine spent in steps.", found.busy_seconds),
        )
        for kind, metrics in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, text, value in metrics:
                family = kind(name, text, labels=["model_name"])
                family.add_metric([self._model], value)
                yield family
