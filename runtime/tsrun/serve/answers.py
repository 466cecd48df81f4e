"""One request's answer: the engine's events, read as reasoning, content and calls, and counted."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tsrun.generation import Event, FinishReason, GenerationRequest, Times, TokenLogprobs, siblings
from tsrun.parsing import CallBegin, Part, Reasoning
from tsrun.serve.engine_client import Generation
from tsrun.serve.front import Front, Prompt
from tsrun.serve.http_errors import at_fault, invalid
from tsrun.serve.metrics import Latency
from tsrun.serve.reading import Reading
from tsrun.serve.sampling_fields import TokenChoice
from tsrun.serve.sessions import miss_reason
from tsrun.serve.shared_state import Enter, Entered, Leave, SessionTurn
from tsrun.serve.token_limits import TokensLeft
from tsrun.serve.usage import Usage


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks: what the queue and the prefix cache tell apart, and the conversation; what logs call the request."""

    user: int = 0
    cache_salt: str | None = None
    session: str | None = None
    request_id: str = ""

    def salt(self, own: str | None) -> str | None:
        """With the request's own; None where anyone's prompts may be found."""
        return own if self.cache_salt is None else f"{self.cache_salt}\n{own or ''}"


@dataclass(slots=True)
class Batch:
    """What has come of an answer since the last time. logprobs: of its tokens, which may come before or after the text that they are."""

    parts: list[Part] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """An answer's share of what its request took when it was let in. entry: the request's own name (`Enter`); num_answers: that it counts
    as; num_tokens: that it took; num_prompt: of these, those of the prompt, which one of several answers pays for."""

    entry: str
    num_answers: int
    num_tokens: int
    num_prompt: int
    entered: Entered

    def leave(self, front: Front, generation: Generation) -> None:
        """Abort what has not ended, and give back what was not used, when the engine says what was."""

        def settle() -> None:
            used = max(0, self.num_prompt - generation.cached_tokens) + generation.num_tokens if generation.was_computed else 0
            front.state.tell(Leave(self.entry, self.num_answers, self.num_tokens, used))

        generation.abort()
        generation.when_ended(settle)


class Admitted:
    """One thing that runs in the engine for a request that was let in."""

    def __init__(self, front: Front, generation: Generation, place: Place) -> None:
        self._front = front
        self._generation = generation
        self._place = place

    async def accepted(self) -> None:
        """Raises RequestError where the engine refuses it."""
        await self._generation.accepted()

    @property
    def tokens_left(self) -> TokensLeft | None:
        """Of the API key, where they are limited."""
        return self._place.entered.left

    def close(self) -> None:
        """Once, however it ends: what still runs then is aborted, since nobody reads on."""
        self._place.leave(self._front, self._generation)


class Answer(Admitted):
    """`batches` gives what has come, once. What is said of the whole is final when it is through."""

    def __init__(
        self,
        front: Front,
        prompt: Prompt,
        generation: Generation,
        reading: Reading,
        place: Place,
    ) -> None:
        super().__init__(front, generation, place)
        self._prompt = prompt
        self._parser = reading.parser()
        self._hidden = front.tokenizer.special_ids.difference(reading.shown)
        self._latency = Latency(front.metrics)
        self.usage = Usage(len(prompt.ids))
        self.finish_reason: FinishReason = "abort"
        self.times: Times | None = None
        self.stop_string: str | None = None
        self.has_calls = False
        self._is_reasoning = False
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    async def batches(self) -> AsyncIterator[Batch]:
        ids: list[int] = []
        pieces: list[str] = []
        try:
            async with self._generation:
                async for events in self._generation:
                    self._latency.take(sum(len(event.token_ids) for event in events))
                    batch, error = Batch(), None
                    for event in events:
                        if event.error is not None:  # what came before it, and comes with it, is sent
                            error = at_fault(event.blame, event.error)
                            self.times, self.finish_reason = event.times or self.times, event.finish_reason or self.finish_reason
                            break
                        ids += event.token_ids
                        pieces.append(event.text)
                        self._take(event, batch)
                    made_at = self._generation.made_at
                    if batch.parts or batch.logprobs:
                        yield batch
                        # Whoever asks for the next batch has sent this one.
                        self._front.metrics.delivery.observe(time.monotonic() - made_at)
                    if error is not None:
                        raise error
        finally:
            self._front.metrics.end(self.finish_reason, self.usage, self.times)
            self._latency.end()
        await self._keep("".join(pieces), ids)

    def _take(self, event: Event, batch: Batch) -> None:
        self.times = event.times or self.times
        self.finish_reason = event.finish_reason or self.finish_reason
        parts = self._parser.feed(event.text)
        if event.finish_reason is not None:
            self.stop_string = event.stopped_by if isinstance(event.stopped_by, str) else None
            parts += self._parser.finish()
        self._is_reasoning = any(isinstance(part, Reasoning) for part in parts) or (self._is_reasoning and not parts)
        self.has_calls = self.has_calls or any(isinstance(part, CallBegin) for part in parts)
        self.usage.completion += len(event.token_ids)
        self.usage.reasoning += len(event.token_ids) if self._is_reasoning else 0
        self.usage.cached = max(self.usage.cached, event.cached_tokens)
        self.usage.accepted += event.accepted
        self.usage.rejected += event.drafted - event.accepted
        if event.token_ids:
            self.usage.miss = miss_reason(self._place.entered.earlier, self.usage.cached, self._front.ready.page_size)
        self.prompt_logprobs = self.prompt_logprobs or event.prompt_logprobs
        batch.parts += parts
        batch.logprobs += event.logprobs

    async def _keep(self, text: str, ids: Sequence[int]) -> None:
        """Unless the text ends before its tokens do: at a stop string. The last token of a turn that ended by itself has no text."""
        if self.stop_string is not None or self._prompt.owner is None:
            return
        shown = ids[:-1] if self.finish_reason == "stop" else ids
        if self._hidden.isdisjoint(shown):  # else the text does not say all that the tokens do
            await self._front.keep(self._prompt, text, shown)


async def begin(
    front: Front, prompt: Prompt, reading: Reading, choice: TokenChoice, origin: Origin, *, most_tokens: int | None
) -> list[Answer]:
    """Submit all continuations that a request asks for. Raises HttpError where there is no room for them, or the key has used too much."""
    if most_tokens is not None and choice.min_tokens > most_tokens:
        raise invalid("min_tokens", f"min_tokens: got {choice.min_tokens}; the answer has {most_tokens} tokens at most")
    request = GenerationRequest(
        prompt=prompt.ids,
        max_tokens=most_tokens,
        sampling=choice.sampling,
        stop=choice.stops,
        ignore_eos=choice.ignore_eos,
        user=origin.user,
        priority=choice.priority,
        deadline_seconds=choice.deadline_seconds,
        cache_salt=origin.salt(choice.cache_salt),
        stop_token_ids=choice.stop_token_ids,
        logprobs=choice.logprobs,
        prompt_logprobs=choice.prompt_logprobs,
        constraint=reading.constraint,
        min_tokens=choice.min_tokens,
        shown=reading.shown,
    )
    requests = siblings(request, choice.num_choices)
    # The prompt is computed once; of an answer that may be as long as the context, no more is known than that.
    of_answer = 0 if most_tokens is None else min(most_tokens, front.ready.max_context - len(prompt.ids))
    of_prompt = [len(prompt.ids), *[0] * (len(requests) - 1)]
    shares = [part + of_answer for part in of_prompt]
    turn = None
    if origin.session is not None and prompt.text is not None:
        turn = SessionTurn(origin.session, prompt.text, len(prompt.ids), prompt.goes_on)
    entry = uuid.uuid4().hex
    answers: list[Answer] = []
    try:
        entered = await front.state.ask(Enter(entry, origin.user, len(requests), sum(shares), turn))
        for one, share, part in zip(requests, shares, of_prompt, strict=True):
            place = Place(entry, 1, share, part, entered)
            answers.append(Answer(front, prompt, front.submit(one, origin.request_id), reading, place))
    except BaseException:
        for begun in answers:
            begun.close()
        front.state.tell(Leave(entry, len(requests) - len(answers), sum(shares[len(answers) :]), 0))
        raise
    return answers


Piece = TypeVar("Piece", covariant=True)


class Batched(Protocol[Piece]):
    def batches(self) -> AsyncIterator[Piece]: ...


async def merged(answers: Sequence[Batched[Piece]]) -> AsyncIterator[tuple[int, Piece]]:
    """What comes of several answers, in the order in which it comes, each with the number of its answer."""
    if len(answers) == 1:
        async for batch in answers[0].batches():
            yield 0, batch
        return
    coming: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def read(index: int, answer: Batched[Piece]) -> None:
        try:
            async for batch in answer.batches():
                coming.put_nowait((index, batch))
        except Exception as error:
            coming.put_nowait(error)
        else:
            coming.put_nowait(None)

    tasks = [asyncio.create_task(read(index, answer)) for index, answer in enumerate(answers)]
    try:
        left = len(answers)
        while left:
            found = await coming.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
