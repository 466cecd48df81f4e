"""What a worker says of its model, its server and its load."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as proto

from tsrun.artifact import Manifest
from tsrun.limits import LimitOptions
from tsrun.serve.engine_client import EngineClient
from tsrun.serve.messages import Ready
from tsrun.serve.metrics import Metrics
from tsrun.whole_tokenizer import is_whole

_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_RATE_SECONDS = 1.0


class WorkerFacts:
    def __init__(self, model: str, manifest: Manifest, options: LimitOptions, engine: EngineClient, ready: Ready, metrics: Metrics) -> None:
        self._model = model
        self._manifest = manifest
        self._options = options
        self._engine = engine
        self._ready = ready
        self._metrics = metrics
        self._began = time.time()
        self._rate = _Rate()

    def model(self) -> Any:
        """Where the tokenizer is stored in parts, no path leads a gateway to it: it has to ask for it."""
        manifest, path = self._manifest, Path(self._ready.artifact)
        return proto.GetModelInfoResponse(
            model_path=str(path),
            tokenizer_path=str(path / "tokenizer") if is_whole(path / "tokenizer") else str(path),
            served_model_name=self._model,
            architectures=[manifest.model.architecture],
            max_context_length=self._ready.max_context,
            max_req_input_len=self._ready.max_context - 1,
            vocab_size=manifest.vocabulary,
            eos_token_ids=manifest.eos_token_ids,
            bos_token_id=manifest.bos_token_id or 0,
            model_dtype=_DTYPES.get(manifest.dtype, manifest.dtype),
        )

    def server(self) -> Any:
        """Its options, and the sizes that followed from them."""
        found = proto.GetServerInfoResponse(
            active_requests=self._engine.num_open,
            uptime_seconds=time.time() - self._began,
            max_total_num_tokens=self._num_tokens,
            tokenspeed_version=f"tsrun {importlib.metadata.version('tsc-llm')}",
            constrained_decoding="requested",
        )
        found.start_time.FromSeconds(int(self._began))
        found.server_args.update({name: value for name, value in asdict(self._options).items() if value is not None})
        ready = self._ready
        sizes = ("max_context", "max_sequences", "num_pages", "page_size", "load_seconds")
        found.scheduler_info.update({name: getattr(ready, name) for name in sizes})
        return found

    def load(self) -> Any:
        """As the engine said last, a fifth of a second ago at most. One rank: groups of ranks share a scheduler."""
        statistics = self._engine.statistics
        answer = proto.GetLoadsResponse(timestamp=datetime.now(UTC).isoformat(), version="tsrun")
        if statistics is None:
            return answer
        load = statistics.load
        used = self._ready.num_pages - load.free_pages
        usage = used / self._ready.num_pages
        rate = self._rate.at(time.monotonic(), statistics.generated_tokens)
        busy = load.running / self._ready.max_sequences
        answer.dp_rank_count = 1
        answer.loads.add(
            num_running_reqs=load.running,
            num_waiting_reqs=load.waiting,
            num_total_reqs=load.running + load.waiting,
            num_used_tokens=used * self._ready.page_size,
            max_total_num_tokens=self._num_tokens,
            max_running_requests=self._ready.max_sequences,
            token_usage=usage,
            active_token_usage=usage,
            gen_throughput=rate,
            cache_hit_rate=self._metrics.hit_rate,
            utilization=busy,
        )
        answer.aggregate.total_running_reqs = load.running
        answer.aggregate.total_waiting_reqs = load.waiting
        answer.aggregate.total_reqs = load.running + load.waiting
        answer.aggregate.avg_token_usage = usage
        answer.aggregate.avg_throughput = rate
        answer.aggregate.avg_utilization = busy
        return answer

    @property
    def _num_tokens(self) -> int:
        return self._ready.num_pages * self._ready.page_size


class _Rate:
    """Tokens per second since it was last asked, a second ago at least."""

    def __init__(self) -> None:
        self._time, self._tokens, self._rate = time.monotonic(), 0, 0.0

    def at(self, now: float, tokens: int) -> float:
        if now - self._time >= _RATE_SECONDS:
            self._rate = (tokens - self._tokens) / (now - self._time)
            self._time, self._tokens = now, tokens
        return self._rate
