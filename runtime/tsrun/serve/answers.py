"""One request's answer: the engine's events, read as reasoning, content and calls, and counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from tsrun.generation import FinishReason, GenerationRequest
from tsrun.parsing import CallBegin, Parser, Part, Reasoning
from tsrun.serve.engine_client import Generation
from tsrun.serve.front import Front, Prompt
from tsrun.serve.reading import Reading
from tsrun.serve.sampling_fields import TokenChoice
from tsrun.serve.sessions import Turn, miss_reason
from tsrun.serve.usage import Usage


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks: what the queue and the prefix cache tell apart, and the conversation."""

    user: int = 0
    cache_salt: str | None = None
    session: str | None = None


class Answer:
    """`parts` gives what has come, in batches, once. The counts are final when it is through."""

    def __init__(
        self,
        front: Front,
        prompt: Prompt,
        generation: Generation,
        parser: Parser,
        *,
        has_stops: bool,
        turn: tuple[Turn | None, str] | None = None,
    ) -> None:
        """turn: the session's turn before, and this one's text."""
        self._front = front
        self._prompt = prompt
        self._generation = generation
        self._parser = parser
        self._has_stops = has_stops
        self._turn = turn
        self._began = time.monotonic()
        self.usage = Usage(len(prompt.ids))
        self.finish_reason: FinishReason = "abort"
        self.has_calls = False

    async def parts(self) -> AsyncIterator[list[Part]]:
        ids: list[int] = []
        pieces: list[str] = []
        try:
            async for parts in self._read(ids, pieces):
                yield parts
        finally:
            self._front.metrics.end(self.finish_reason, self.usage)
            self._front.metrics.whole.observe(time.monotonic() - self._began)
        self._keep("".join(pieces), ids)

    async def _read(self, ids: list[int], pieces: list[str]) -> AsyncIterator[list[Part]]:
        is_reasoning = False
        last = 0.0
        async with self._generation:
            async for events in self._generation:
                parts: list[Part] = []
                for event in events:
                    ids += event.token_ids
                    pieces.append(event.text)
                    self.usage.completion += len(event.token_ids)
                    self.usage.cached = max(self.usage.cached, event.cached_tokens)
                    parts += self._parser.feed(event.text)
                    if event.finish_reason is not None:
                        self.finish_reason = event.finish_reason
                        parts += self._parser.finish()
                    is_reasoning = any(isinstance(p, Reasoning) for p in parts) or (is_reasoning and not parts)
                    self.usage.reasoning += len(event.token_ids) if is_reasoning else 0
                self.has_calls = self.has_calls or any(isinstance(p, CallBegin) for p in parts)
                last = self._time(last, sum(len(event.token_ids) for event in events))
                if parts:
                    yield parts

    def _time(self, last: float, num_tokens: int) -> float:
        """Observe tokens that came together; the time at which they did."""
        if not num_tokens:
            return last
        now = time.monotonic()
        if last == 0.0:
            self._front.metrics.first_token.observe(now - self._began)
        for _ in range(num_tokens if last else 0):
            self._front.metrics.next_token.observe((now - last) / num_tokens)
        if self._turn is not None:
            self.usage.miss = miss_reason(*self._turn, self.usage.cached, self._front.ready.page_size)
        return now

    def _keep(self, text: str, ids: Sequence[int]) -> None:
        """Unless the text ends before its tokens do: at a stop string. The last token of a turn that ended by itself has no text."""
        if self.finish_reason == "stop" and self._has_stops:
            return
        shown = ids[:-1] if self.finish_reason == "stop" else ids
        self._front.keep(self._prompt, text, shown)


def begin(front: Front, prompt: Prompt, reading: Reading, choice: TokenChoice, origin: Origin, *, most_tokens: int | None) -> list[Answer]:
    """Submit all continuations that a request asks for. Of one with a seed each has a seed of its own, the next number."""
    answers = []
    turn = None
    if origin.session is not None and prompt.text is not None:
        turn = front.sessions.note(f"{origin.user} {origin.session}", prompt.text, len(prompt.ids)), prompt.text
    for index in range(choice.num_choices):
        sampling = choice.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + index) % 2**64)
        request = GenerationRequest(
            prompt=prompt.ids,
            max_tokens=most_tokens,
            sampling=sampling,
            stop=choice.stops,
            ignore_eos=choice.ignore_eos,
            user=origin.user,
            priority=choice.priority,
            deadline_seconds=choice.deadline_seconds,
            cache_salt=choice.cache_salt if origin.cache_salt is None else f"{origin.cache_salt}\n{choice.cache_salt or ''}",
            shown=reading.shown,
        )
        answers.append(Answer(front, prompt, front.submit(request), reading.parser(), has_stops=bool(choice.stops), turn=turn))
    return answers


async def merged(answers: Sequence[Answer]) -> AsyncIterator[tuple[int, list[Part]]]:
    """What comes of several answers, in the order in which it comes, each with the number of its answer."""
    if len(answers) == 1:
        async for parts in answers[0].parts():
            yield 0, parts
        return
    coming: asyncio.Queue[tuple[int, list[Part]] | Exception | None] = asyncio.Queue()

    async def read(index: int, answer: Answer) -> None:
        try:
            async for parts in answer.parts():
                coming.put_nowait((index, parts))
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
