"""`/v1/completions`: OpenAI's older form, a text and what follows it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tsrun.parsing import Content, Part
from tsrun.serve.answers import Answer, Origin, begin, merged
from tsrun.serve.chat import finish_reason
from tsrun.serve.front import Front, Prompt
from tsrun.serve.http_errors import HttpError, invalid, unsupported
from tsrun.serve.reading import Reading
from tsrun.serve.sampling_fields import SamplingFields, check_count
from tsrun.serve.sse import event
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
    add_special_tokens: bool | None = None

    def check(self) -> None:
        check_count("max_tokens", self.max_tokens)
        if self.suffix:
            raise unsupported("suffix", "this model only continues a text")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "ask for `n` continuations and choose among them")

    def prompts(self) -> list[str | list[int]]:
        found = [self.prompt] if isinstance(self.prompt, str) or _is_ids(self.prompt) else self.prompt
        if not isinstance(found, list) or not found or len(found) > MOST_PROMPTS:
            raise invalid("prompt", f"prompt: give a text, an array of tokens, or an array of at most {MOST_PROMPTS} of these")
        if not all(isinstance(one, str) or _is_ids(one) for one in found):
            raise invalid("prompt", "prompt: give a text, an array of tokens, or an array of these")
        return found


class Completion:
    """The choices of one request: `n` for each prompt. `start` may refuse; then `whole` or `stream`."""

    def __init__(self, front: Front, request: CompletionRequest) -> None:
        self._front = front
        self._request = request
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": front.model}
        self._answers: list[Answer] = []
        self._prompts: list[Prompt] = []

    async def start(self, origin: Origin) -> None:
        request = self._request
        request.check()
        choice = request.token_choice()
        prompts = request.prompts()
        if len(prompts) * choice.num_choices > MOST_PROMPTS:
            raise invalid("n", f"n: {len(prompts)} prompts of {choice.num_choices} choices are more than {MOST_PROMPTS}")
        for given in prompts:
            prompt = await self._front.encoded(given) if isinstance(given, str) else Prompt(self._checked(given))
            self._front.check_length(prompt, of_messages=False)
            self._prompts.append(prompt)
        for prompt in self._prompts:
            most = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
            self._answers += begin(self._front, prompt, Reading(), choice, origin, most_tokens=most)

    async def whole(self) -> dict[str, Any]:
        texts = [self._echo(index) for index in range(len(self._answers))]
        async for index, parts in merged(self._answers):
            texts[index] += _text(parts)
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason(answer)}
            for index, (text, answer) in enumerate(zip(texts, self._answers, strict=True))
        ]
        return {**self._head, "choices": choices, "usage": self._usage().chat()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Events up to `[DONE]`."""
        for index in range(len(self._answers)):
            if echo := self._echo(index):
                yield self._chunk(index, echo)
        async for index, parts in merged(self._answers):
            if text := _text(parts):
                yield self._chunk(index, text)
        for index, answer in enumerate(self._answers):
            yield self._chunk(index, "", finish_reason(answer))
        if self._request.includes_usage:
            yield event({**self._head, "choices": [], "usage": self._usage().chat()})
        yield b"data: [DONE]\n\n"

    def _chunk(self, index: int, text: str, reason: str | None = None) -> bytes:
        return event({**self._head, "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": reason}]})

    def _echo(self, index: int) -> str:
        if not self._request.echo:
            return ""
        prompt = self._prompts[index // (self._request.n or 1)]
        return self._front.tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text

    def _checked(self, ids: list[int]) -> list[int]:
        if any(not 0 <= index < self._front.vocabulary for index in ids):
            raise HttpError(400, f"prompt: a token is outside of the vocabulary of {self._front.vocabulary}", param="prompt")
        if not ids:
            raise invalid("prompt", "prompt: it is empty; give at least one token")
        return ids

    def _usage(self) -> Usage:
        total = Usage(sum(len(prompt.ids) for prompt in self._prompts))
        for answer in self._answers:
            total.add(answer.usage)
        return total


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int for one in value) and bool(value)


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))
