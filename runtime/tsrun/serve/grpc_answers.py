"""One answer in the gateway's words: tokens as they come, or all at the end, with what is known of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from smg_grpc_proto.generated import tokenspeed_scheduler_pb2 as proto

from tsrun.generation import Blame, Event, FinishReason, Times, TokenLogprobs
from tsrun.serve.engine_client import Generation
from tsrun.serve.metrics import Latency, Metrics
from tsrun.serve.usage import Usage

_STATUS: Mapping[Blame, grpc.StatusCode] = {
    "request": grpc.StatusCode.INVALID_ARGUMENT,
    "model": grpc.StatusCode.INTERNAL,
    "engine": grpc.StatusCode.UNAVAILABLE,
}


class Failed(Exception):
    """An answer that ended by an error: the status that says so."""

    def __init__(self, code: grpc.StatusCode, line: str) -> None:
        super().__init__(line)
        self.code = code


class Reply:
    """The answer of one generation. `index`: which of the request's answers it is; `keeps_stop`: the token that it stopped at is shown."""

    def __init__(self, asked: Any, index: int, num_prompt: int, generation: Generation, metrics: Metrics) -> None:
        self._request, self._streams, self._keeps_stop = asked.request_id, asked.stream, asked.sampling_params.no_stop_trim
        self._index = index
        self._generation = generation
        self._metrics = metrics
        self._latency = Latency(metrics)
        self.usage = Usage(num_prompt)
        self.finish_reason: FinishReason = "abort"
        self.times: Times | None = None

    async def batches(self) -> AsyncIterator[Any]:
        """`GenerateResponse`s, the last one complete. Raises `Failed`, and what the generation does."""
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        last: Event | None = None
        try:
            async with self._generation:
                async for events in self._generation:
                    error = None
                    for event in events:
                        self._take(event)
                        if event.error is not None:  # what came before it, and comes with it, is sent
                            error = Failed(_STATUS[event.blame], event.error)
                            break
                        shown = self._shown(event)
                        ids += shown
                        logprobs += event.logprobs[: len(shown)]
                    last = events[-1]
                    if self._streams:
                        for at in range(len(ids)):  # one token each: the gateway loses text that comes in one piece with a call
                            yield self._chunk(ids[at : at + 1], logprobs[at : at + 1])
                        ids, logprobs = [], []
                    if error is not None:
                        raise error
            assert last is not None
            yield self._complete(last, ids, logprobs)
        finally:
            self._metrics.end(self.finish_reason, self.usage, self.times)
            self._latency.end()

    def _take(self, event: Event) -> None:
        self.times = event.times or self.times
        self.finish_reason = event.finish_reason or self.finish_reason
        self._latency.take(len(event.token_ids))
        self.usage.completion += len(event.token_ids)
        self.usage.cached = max(self.usage.cached, event.cached_tokens)

    def _shown(self, event: Event) -> Sequence[int]:
        """Without the token that ended the answer, which has no text."""
        return event.token_ids if self._keeps_stop or not isinstance(event.stopped_by, int) else event.token_ids[:-1]

    def _chunk(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Any:
        chunk = proto.GenerateStreamChunk(token_ids=ids, output_logprobs=_logprobs(logprobs), **self._counts())
        return proto.GenerateResponse(request_id=self._request, chunk=chunk)

    def _complete(self, last: Event, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Any:
        match last.stopped_by:
            case int() as token:
                matched: dict[str, Any] = {"matched_token_id": token}
            case str() as text:
                matched = {"matched_stop_str": text}
            case None:
                matched = {}
        reason = "length" if last.finish_reason == "deadline" else last.finish_reason
        complete = proto.GenerateComplete(
            output_ids=ids, output_logprobs=_logprobs(logprobs), finish_reason=reason, **self._counts(), **matched
        )
        return proto.GenerateResponse(request_id=self._request, complete=complete)

    def _counts(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.usage.prompt,
            "completion_tokens": self.usage.completion,
            "cached_tokens": self.usage.cached,
            "index": self._index,
        }


def _logprobs(found: Sequence[TokenLogprobs]) -> Any:
    if not found:
        return None
    return proto.OutputLogProbs(
        token_logprobs=[one.logprob for one in found],
        token_ids=[one.token for one in found],
        top_logprobs=[proto.TopLogProbs(values=[p for _, p in one.top], token_ids=[t for t, _ in one.top]) for one in found],
    )
