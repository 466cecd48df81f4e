"""`/v1/chat/completions`: OpenAI's form of a conversation and of its answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, assert_never

from tsrun.generation import TokenLogprobs
from tsrun.parsing import CallArguments, CallBegin, CallEnd, Content, Part, Reasoning
from tsrun.serve.answers import Answer, Origin, begin, merged
from tsrun.serve.conversation import Conversation, openai_messages
from tsrun.serve.front import Front
from tsrun.serve.http_errors import invalid, unsupported
from tsrun.serve.sampling_fields import SamplingFields, check_count
from tsrun.serve.sse import event
from tsrun.serve.token_logprobs import chat_logprobs, prompt_logprobs
from tsrun.serve.tools import must_call, offered, strict_names
from tsrun.serve.usage import Usage

Delta = dict[str, Any]


class ChatRequest(SamplingFields, kw_only=True):
    """The fields that are known. Of those that change the answer each is done or refused by name."""

    messages: list[Any]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    function_call: Any = None
    functions: list[Any] | None = None

    @property
    def most_calls(self) -> int | None:
        return 1 if self.parallel_tool_calls is False else None

    def check(self) -> None:
        if self.modalities is not None and self.modalities != ["text"]:
            raise unsupported("modalities", "this model answers in text")
        if self.audio is not None:
            raise unsupported("audio", "this model answers in text")
        for name in ("functions", "function_call"):
            if getattr(self, name) is not None:
                raise unsupported(name, "send `tools` and `tool_choice`")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "top_logprobs: send `logprobs` too")
        check_count("max_tokens", self.max_tokens)
        check_count("max_completion_tokens", self.max_completion_tokens)

    def conversation(self) -> Conversation:
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        if self.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.add_generation_prompt
        messages = openai_messages(self.messages)
        continues = bool(self.continue_final_message)
        if continues and messages[-1]["role"] != "assistant":
            raise invalid("continue_final_message", "continue_final_message: the last message is not the assistant's")
        tools = offered(self.tools, self.tool_choice)
        return Conversation(
            messages, tools, variables, continues, strict=strict_names(self.tools), must_call=must_call(tools, self.tool_choice)
        )


class ChatAnswer:
    """The choices of one request. `start` may refuse; then `whole` or `stream`."""

    def __init__(self, front: Front, request: ChatRequest) -> None:
        self._front = front
        self._request = request
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": front.model}
        self.answers: list[Answer] = []

    async def start(self, origin: Origin) -> None:
        request = self._request
        request.check()
        conversation = await self._front.conversation(request.conversation, request.messages)
        choice = request.token_choice(logprobs=request.top_logprobs or 0 if request.logprobs else None)
        prompt = await self._front.prompt_of(conversation, origin.salt(request.cache_salt))
        reading = self._front.reading(conversation, prompt, choice.constraint, most_calls=request.most_calls)
        most = request.max_completion_tokens or request.max_tokens
        self.answers = await begin(self._front, prompt, reading, choice, origin, most_tokens=most)

    async def whole(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "assistant", "content": None} for _ in self.answers]
        tokens: list[list[TokenLogprobs]] = [[] for _ in self.answers]
        async for choice, batch in merged(self.answers):
            tokens[choice] += batch.logprobs
            for part in batch.parts:
                _add(messages[choice], self._delta(choice, part))
        choices = []
        for index, (answer, message) in enumerate(zip(self.answers, messages, strict=True)):
            for call in message.get("tool_calls", ()):
                del call["index"]
            if not message.get("tool_calls") and message["content"] is None:
                message["content"] = ""
            logprobs = chat_logprobs(self._front, tokens[index]) if self._request.logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(answer)})
        found = {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage().chat()}
        if self._request.prompt_logprobs is not None:
            found["prompt_logprobs"] = prompt_logprobs(self._front, self.answers[0].prompt_logprobs)
        return found

    async def stream(self) -> AsyncIterator[bytes]:
        """Events up to `[DONE]`."""
        for choice in range(len(self.answers)):
            yield self._chunk(choice, {"role": "assistant", "content": ""})
        async for choice, batch in merged(self.answers):
            deltas = [delta for part in batch.parts if (delta := self._delta(choice, part))] or ([{}] if batch.logprobs else [])
            logprobs = chat_logprobs(self._front, batch.logprobs) if batch.logprobs else None
            chunks = [self._chunk(choice, delta, None, None if index else logprobs) for index, delta in enumerate(deltas)]
            if chunks:
                yield b"".join(chunks)
        for choice, answer in enumerate(self.answers):
            yield self._chunk(choice, {}, finish_reason(answer))
        if self._request.includes_usage:
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage().chat()})
        yield b"data: [DONE]\n\n"

    def _chunk(self, choice: int, delta: Delta, reason: str | None = None, logprobs: Any = None) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]
        return event({**self._head, "object": "chat.completion.chunk", "choices": choices})

    def _delta(self, choice: int, part: Part) -> Delta:
        match part:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case CallBegin(index, name, identity):
                call = {"id": identity or call_id(), "type": "function", "function": {"name": name, "arguments": ""}}
                return {"tool_calls": [{"index": index, **call}]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case CallEnd():
                return {}
        assert_never(part)

    def _usage(self) -> Usage:
        total = Usage(self.answers[0].usage.prompt)
        for answer in self.answers:
            total.add(answer.usage)
        return total


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def finish_reason(answer: Answer) -> str:
    match answer.finish_reason:
        case "stop":
            return "tool_calls" if answer.has_calls and answer.stop_string is None else "stop"
        case "length" | "abort" | "deadline" | "error":
            return "length"
    assert_never(answer.finish_reason)


def _add(message: dict[str, Any], delta: Delta) -> None:
    """Put what a stream would send together."""
    for name in ("content", "reasoning_content"):
        if name in delta:
            message[name] = (message.get(name) or "") + delta[name]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append(call)
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
