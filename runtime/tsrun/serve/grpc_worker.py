"""`tokenspeed.grpc.scheduler.TokenSpeedScheduler`: what an SMG gateway asks of a worker. The gateway has the APIs, templates, tokens and
parsers; here token ids come in and go out."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from smg_grpc_proto.generated import common_pb2 as common
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as proto

from tsrun.errors import MachineError, RequestError
from tsrun.serve.answers import merged
from tsrun.serve.engine_client import EngineClient, Generation
from tsrun.serve.grpc_answers import Failed, Reply
from tsrun.serve.grpc_requests import requests_of
from tsrun.serve.health import Health
from tsrun.serve.metrics import Metrics
from tsrun.serve.observing import Observer
from tsrun.serve.page_batches import batch_of
from tsrun.serve.records import Record
from tsrun.serve.tokenizer_bundle import Bundle
from tsrun.serve.worker_facts import WorkerFacts

SERVICE = "tokenspeed.grpc.scheduler.TokenSpeedScheduler"
_CHUNK_BYTES = 64 * 1024


class Worker:
    """The service. An error of a request is a status with its one line: INVALID_ARGUMENT, or UNAVAILABLE where another worker may do it."""

    def __init__(self, engine: EngineClient, metrics: Metrics, facts: WorkerFacts, tokenizer: Path, observer: Observer) -> None:
        self.engine = engine
        self.is_draining = False
        self.health = Health(self)
        self._metrics = metrics
        self._facts = facts
        self._tokenizer = tokenizer
        self._observer = observer
        self._running: defaultdict[str, list[Generation]] = defaultdict(list)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A client that goes aborts its request, whether by leaving the stream or by `Abort`."""
        identity = request.request_id
        generations: list[Generation] = []
        headers = {name.encode(): value for name, value in context.invocation_metadata() if isinstance(value, str)}
        record = Record(identity, f"/{SERVICE}/Generate", headers, operation="text_completion")

        async def fail(code: grpc.StatusCode, line: str) -> None:
            record.status = record.error = code.name
            await context.abort(code, line)

        try:
            if self.is_draining:
                raise Failed(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            asked = requests_of(request)
            generations = [self.engine.submit(one, identity) for one in asked]
            self._running[identity] += generations
            for generation in generations:
                await generation.accepted()
            await context.send_initial_metadata(())  # now, so that who waits for a place knows that it has been taken
            num_prompt = len(asked[0].prompt)
            replies = [Reply(request, index, num_prompt, each, self._metrics) for index, each in enumerate(generations)]
            record.outcomes = replies
            async for _, response in merged(replies):
                yield response
            record.status = grpc.StatusCode.OK.name
        except RequestError as error:
            await fail(grpc.StatusCode.INVALID_ARGUMENT, error.line)
        except MachineError as error:
            await fail(grpc.StatusCode.UNAVAILABLE, error.line)
        except Failed as error:
            await fail(error.code, str(error))
        finally:
            record.status = record.status or grpc.StatusCode.CANCELLED.name
            self._observer.end(record)
            for generation in generations:
                generation.abort()
            left = [each for each in self._running.pop(identity, ()) if each not in generations]
            if left:
                self._running[identity] = left

    async def Abort(self, request: Any, context: Any) -> Any:
        """Of a request that has ended, or that there never was: nothing to do, and no error."""
        running = self._running.get(request.request_id, ())
        for generation in running:
            generation.abort()
        return proto.AbortResponse(success=True, message="aborted" if running else "no such request runs")

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        why = self.health.unready()
        return proto.HealthCheckResponse(healthy=why is None, message=why or "ok")

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        return self._facts.model()

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        return self._facts.server()

    async def GetLoads(self, request: Any, context: Any) -> Any:
        if request.HasField("dp_rank") and request.dp_rank != 0:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"dp_rank: got {request.dp_rank}; there is rank 0 alone")
        return self._facts.load()

    async def SubscribeKvEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """All that the prefix cache has, then what changes, as fast as the gateway takes it. Numbers go on after the one that it gives,
        whatever it has missed since: a stream begins with the whole."""
        number = request.start_sequence_number
        try:
            async with self.engine.follow_pages() as feed:
                await context.send_initial_metadata(())
                async for events, anew in feed:
                    number += 1
                    yield batch_of(number, events, anew=anew)
        except MachineError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.line)

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        bundle = await asyncio.shield(self._bundle)  # others may wait for it
        starts = range(0, len(bundle.data), _CHUNK_BYTES)
        for start in starts:
            digest = bundle.sha256 if start == starts[-1] else ""
            yield common.GetTokenizerChunk(data=bundle.data[start : start + _CHUNK_BYTES], sha256=digest)

    async def FlushCache(self, request: Any, context: Any) -> Any:
        why = "the prefix cache is not flushed on demand: a page is given up when its room is needed; start the worker again"
        return common.FlushCacheResponse(success=False, message=why)

    async def StartProfile(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no profiler here")

    async def StopProfile(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no profiler here")

    @cached_property
    def _bundle(self) -> asyncio.Task[Bundle]:
        """Made when it is first asked for, and kept."""
        return asyncio.create_task(asyncio.to_thread(Bundle.of, self._tokenizer))
