"""`/v1/chat/completions`: OpenAI's form of a conversation and of its answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, assert_never

from tsrun.parsing import CallArguments, CallBegin, CallEnd, Content, Part, Reasoning
from tsrun.serve.answers import Answer, Origin, begin, merged
from tsrun.serve.conversation import Conversation, openai_messages
from tsrun.serve.front import Front
from tsrun.serve.http_errors import invalid, unsupported
from tsrun.serve.sampling_fields import SamplingFields, check_count
from tsrun.serve.sse import event
from tsrun.serve.tools import offered
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
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    function_call: Any = None
    functions: list[Any] | None = None

    def check(self) -> None:
        if self.modalities is not None and self.modalities != ["text"]:
            raise unsupported("modalities", "this model answers in text")
        if self.audio is not None:
            raise unsupported("audio", "this model answers in text")
        for name in ("functions", "function_call"):
            if getattr(self, name) is not None:
                raise unsupported(name, "send `tools` and `tool_choice`")
        check_count("max_tokens", self.max_tokens)
        check_count("max_completion_tokens", self.max_completion_tokens)

    def conversation(self) -> Conversation:
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        messages = openai_messages(self.messages)
        begun = messages[-1]["role"] == "assistant"
        if self.continue_final_message and not begun:
            raise invalid("continue_final_message", "continue_final_message: the last message is not the assistant's")
        return Conversation(messages, offered(self.tools, self.tool_choice), variables)


class ChatAnswer:
    """The choices of one request. `start` may refuse; then `whole` or `stream`."""

    def __init__(self, front: Front, request: ChatRequest) -> None:
        self._front = front
        self._request = request
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": front.model}
        self._answers: list[Answer] = []
        self._call_ids: dict[tuple[int, int], str] = {}

    async def start(self, origin: Origin) -> None:
        request = self._request
        request.check()
        sampling = request.token_choice()
        conversation = request.conversation()
        prompt = await self._front.prompt_of(conversation)
        reading = self._front.reading(conversation, prompt)
        self._answers = begin(
            self._front, prompt, reading, sampling, origin, most_tokens=request.max_completion_tokens or request.max_tokens
        )

    async def whole(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "assistant", "content": None} for _ in self._answers]
        async for choice, parts in merged(self._answers):
            for part in parts:
                _add(messages[choice], self._delta(choice, part))
        choices = []
        for index, (answer, message) in enumerate(zip(self._answers, messages, strict=True)):
            for call in message.get("tool_calls", ()):
                del call["index"]
            if not message.get("tool_calls") and message["content"] is None:
                message["content"] = ""
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason(answer)})
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage().chat()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Events up to `[DONE]`."""
        for choice in range(len(self._answers)):
            yield self._chunk(choice, {"role": "assistant", "content": ""})
        async for choice, parts in merged(self._answers):
            deltas = [delta for part in parts if (delta := self._delta(choice, part))]
            if deltas:
                yield b"".join(self._chunk(choice, delta) for delta in deltas)
        for choice, answer in enumerate(self._answers):
            yield self._chunk(choice, {}, finish_reason(answer))
        if self._request.includes_usage:
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage().chat()})
        yield b"data: [DONE]\n\n"

    def _chunk(self, choice: int, delta: Delta, reason: str | None = None) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
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
        total = Usage(self._answers[0].usage.prompt)
        for answer in self._answers:
            total.add(answer.usage)
        return total


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def finish_reason(answer: Answer) -> str:
    match answer.finish_reason:
        case "stop":
            return "tool_calls" if answer.has_calls else "stop"
        case "length" | "abort" | "deadline":
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
