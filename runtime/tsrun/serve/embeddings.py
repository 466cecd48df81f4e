"""`/v1/embeddings`: OpenAI's form, texts as vectors of length 1."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tsrun.embedding import unit
from tsrun.generation import EmbeddingRequest, Event, FinishReason, Times
from tsrun.serve.answers import Admitted, Origin, Place, merged
from tsrun.serve.engine_client import Generation
from tsrun.serve.front import Front, Prompt
from tsrun.serve.http_errors import HttpError, at_fault, context_exceeded, invalid
from tsrun.serve.inputs import prompts, several
from tsrun.serve.metrics import Latency
from tsrun.serve.sampling_fields import check_queueing
from tsrun.serve.shared_state import Enter, Leave
from tsrun.serve.usage import Usage

MOST_INPUTS = 2048
"""As OpenAI has it."""
FORMATS = ("float", "base64")
_STATUS = {"deadline": 504, "abort": 503}


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """input: a text, its tokens, or several of either; encoding_format: `float`, or `base64` of little-endian f32; dimensions: only so many
    of an embedding's first numbers, at length 1 again, for models that were made so. priority, deadline_seconds and cache_salt are ours."""

    input: Any
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    priority: int | None = None
    deadline_seconds: float | None = None
    cache_salt: str | None = None

    def check(self, width: int) -> None:
        """Raises HttpError. width: of the model's embeddings."""
        check_queueing(self.priority, self.deadline_seconds)
        if self.encoding_format not in (None, *FORMATS):
            raise invalid("encoding_format", f"encoding_format: got {self.encoding_format}; give {' or '.join(FORMATS)}")
        if self.dimensions is not None and not 1 <= self.dimensions <= width:
            raise invalid("dimensions", f"dimensions: got {self.dimensions}; give 1 to {width}, what the model's embeddings have")


class Embedding(Admitted):
    """One input under way. `batches` gives its vector, once."""

    def __init__(self, front: Front, prompt: Prompt, generation: Generation, place: Place) -> None:
        super().__init__(front, generation, place)
        self._latency = Latency(front.metrics)
        self.usage = Usage(len(prompt.ids))
        self.finish_reason: FinishReason = "abort"
        self.times: Times | None = None

    async def batches(self) -> AsyncIterator[NDArray[np.float32]]:
        """Raises HttpError where there is none."""
        try:
            async with self._generation:
                async for events in self._generation:
                    for event in events:
                        self.finish_reason = event.finish_reason or self.finish_reason
                        self.times = event.times or self.times
                        self.usage.cached = event.cached_tokens
                        yield _vector(event)
        finally:
            self._front.metrics.end(self.finish_reason, self.usage, self.times)
            self._latency.end()


def _vector(event: Event) -> NDArray[np.float32]:
    if event.error is not None:
        raise at_fault(event.blame, event.error)
    if event.embedding is None:
        reason = event.finish_reason or "error"
        raise HttpError(_STATUS.get(reason, 500), f"there is no embedding: it ended by its {reason}")
    return np.frombuffer(event.embedding, dtype="<f4")


class Embeddings:
    """The embeddings of one request, whose inputs all run at once."""

    def __init__(self, front: Front, request: EmbeddingsRequest) -> None:
        self._front = front
        self._request = request
        self.answers: list[Embedding] = []

    async def start(self, origin: Origin) -> None:
        front, request = self._front, self._request
        assert front.embedding is not None, "another model is refused before"
        request.check(front.embedding)
        given = several(request.input, "input", MOST_INPUTS)
        if "" in given:
            raise invalid("input", "input: a text is empty; give at least one character")
        texts = await prompts(front, given, "input")
        for prompt in texts:
            if len(prompt.ids) > front.ready.max_context:
                raise context_exceeded(front.ready.max_context, len(prompt.ids), "input")
        await self._submit(texts, origin)

    async def _submit(self, texts: Sequence[Prompt], origin: Origin) -> None:
        """All of them count as one answer."""
        front, request, entry = self._front, self._request, uuid.uuid4().hex
        sizes = [len(prompt.ids) for prompt in texts]
        try:
            entered = await front.state.ask(Enter(entry, origin.user, 1, sum(sizes)))
            for number, (prompt, size) in enumerate(zip(texts, sizes, strict=True), 1):
                asked = EmbeddingRequest(
                    prompt.ids,
                    user=origin.user,
                    priority=request.priority or 0,
                    deadline_seconds=request.deadline_seconds,
                    cache_salt=origin.salt(request.cache_salt),
                )
                place = Place(entry, 1 if number == len(texts) else 0, size, size, entered)
                self.answers.append(Embedding(front, prompt, front.submit(asked, origin.request_id), place))
        except BaseException:
            front.state.tell(Leave(entry, 1, sum(sizes[len(self.answers) :]), 0))
            raise

    async def whole(self) -> dict[str, Any]:
        found: dict[int, Any] = {}
        async for index, vector in merged(self.answers):
            found[index] = self._encoded(vector)
        tokens = sum(answer.usage.prompt for answer in self.answers)
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": found[index]} for index in range(len(self.answers))],
            "model": self._front.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _encoded(self, vector: NDArray[np.float32]) -> list[float] | str:
        if self._request.dimensions is not None:
            vector = unit(vector[: self._request.dimensions])
        if self._request.encoding_format == "base64":
            return base64.b64encode(vector.tobytes()).decode()
        floats: list[float] = vector.tolist()
        return floats
