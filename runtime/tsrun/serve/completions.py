"""`/v1/completions`: OpenAI's older form, a text and what follows it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from tsrun.generation import TokenLogprobs
from tsrun.parsing import Content, Part
from tsrun.serve.answers import Answer, Origin, begin, merged
from tsrun.serve.chat import finish_reason
from tsrun.serve.front import Front, Prompt
from tsrun.serve.http_errors import invalid, unsupported
from tsrun.serve.inputs import prompts, several
from tsrun.serve.reading import Reading
from tsrun.serve.sampling_fields import SamplingFields, check_count
from tsrun.serve.sse import event
from tsrun.serve.token_logprobs import completion_logprobs, prompt_logprobs
from tsrun.serve.usage import Usage

DEFAULT_TOKENS = 16
MOST_PROMPTS = 128


class CompletionRequest(SamplingFields, kw_only=True):
    """prompt: a text, its tokens, or several of either. best_of is done where it asks for no more than n."""

    prompt: Any
    max_tokens: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None

    def check(self) -> None:
        check_count("max_tokens", self.max_tokens)
        if self.suffix:
            raise unsupported("suffix", "this model only continues a text")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "ask for `n` continuations and choose among them")


class Completion:
    """The choices of one request: `n` for each prompt. `start` may refuse; then `whole` or `stream`."""

    def __init__(self, front: Front, request: CompletionRequest) -> None:
        self._front = front
        self._request = request
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": front.model}
        self.answers: list[Answer] = []
        self._prompts: list[Prompt] = []

    async def start(self, origin: Origin) -> None:
        request = self._request
        request.check()
        choice = request.token_choice(logprobs=request.logprobs)
        if request.echo and request.logprobs is not None:
            choice = replace(choice, prompt_logprobs=request.logprobs)
        given = several(request.prompt, "prompt", MOST_PROMPTS)
        if len(given) * choice.num_choices > MOST_PROMPTS:
            raise invalid("n", f"n: {len(given)} prompts of {choice.num_choices} choices are more than {MOST_PROMPTS}")
        self._prompts = await prompts(self._front, given, "prompt")
        for prompt in self._prompts:
            self._front.check_length(prompt, "prompt")
        for prompt in self._prompts:
            most = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
            reading = Reading(constraint=choice.constraint)
            self.answers += await begin(self._front, prompt, reading, choice, origin, most_tokens=most)

    async def whole(self) -> dict[str, Any]:
        texts = [self._echo(index) for index in range(len(self.answers))]
        tokens: list[list[TokenLogprobs]] = [[] for _ in self.answers]
        async for index, batch in merged(self.answers):
            texts[index] += _text(batch.parts)
            tokens[index] += batch.logprobs
        choices = []
        for index, (text, answer) in enumerate(zip(texts, self.answers, strict=True)):
            choice = {
                "index": index,
                "text": text,
                "logprobs": self._logprobs(index, tokens[index]),
                "finish_reason": finish_reason(answer),
            }
            if self._request.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_logprobs(self._front, answer.prompt_logprobs)
            choices.append(choice)
        return {**self._head, "choices": choices, "usage": self._usage().chat()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Events up to `[DONE]`."""
        for index in range(len(self.answers)):
            if echo := self._echo(index):
                yield self._chunk(index, echo)
        async for index, batch in merged(self.answers):
            text = _text(batch.parts)
            if text or batch.logprobs:
                logprobs = completion_logprobs(self._front, None, batch.logprobs, 0) if batch.logprobs else None
                yield self._chunk(index, text, None, logprobs)
        for index, answer in enumerate(self.answers):
            yield self._chunk(index, "", finish_reason(answer))
        if self._request.includes_usage:
            yield event({**self._head, "choices": [], "usage": self._usage().chat()})
        yield b"data: [DONE]\n\n"

    def _chunk(self, index: int, text: str, reason: str | None = None, logprobs: Any = None) -> bytes:
        return event({**self._head, "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}]})

    def _logprobs(self, index: int, tokens: list[TokenLogprobs]) -> dict[str, Any] | None:
        """With `echo` those of the prompt go before."""
        if self._request.logprobs is None:
            return None
        if not self._request.echo:
            return completion_logprobs(self._front, None, tokens, 0)
        prompt = self._prompts[index // (self._request.n or 1)]
        return completion_logprobs(self._front, prompt.ids[0], [*self.answers[index].prompt_logprobs, *tokens], 0)

    def _echo(self, index: int) -> str:
        if not self._request.echo:
            return ""
        prompt = self._prompts[index // (self._request.n or 1)]
        return self._front.tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text

    def _usage(self) -> Usage:
        total = Usage(sum(len(prompt.ids) for prompt in self._prompts))
        for answer in self.answers:
            total.add(answer.usage)
        return total


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))
