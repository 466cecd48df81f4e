"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's form of a conversation and of its answer."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, assert_never

import msgspec

from tsrun.parsing import CallArguments, CallBegin, CallEnd, Content, Part, Reasoning
from tsrun.serve.answers import Answer, Origin, begin
from tsrun.serve.constraints import of_format
from tsrun.serve.conversation import Conversation, Message, Tool, text_of, tool_call
from tsrun.serve.front import Front
from tsrun.serve.http_errors import HttpError, invalid
from tsrun.serve.sampling_fields import SamplingFields, TokenChoice, check_count
from tsrun.serve.sse import event
from tsrun.serve.tools import strict_names

_BILLING = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
"""What Claude Code puts before its system prompt: the build, and in some of them a number that changes with each request, which would
keep a conversation's next turn from finding its beginning in the cache."""


class MessagesRequest(msgspec.Struct, kw_only=True):
    """The fields that are known. `system` may also be a message among the others, as Claude Code sends it."""

    messages: list[Any]
    model: str | None = None
    max_tokens: int | None = None
    system: Any = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    def token_choice(self) -> TokenChoice:
        fields = SamplingFields(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=self.stop_sequences)
        return replace(fields.token_choice(), constraint=of_format((self.output_config or {}).get("format"), "output_config.format"))

    @property
    def most_calls(self) -> int | None:
        return 1 if isinstance(self.tool_choice, dict) and self.tool_choice.get("disable_parallel_tool_use") else None

    def conversation(self, *, drops_billing: bool) -> Conversation:
        if not self.messages:
            raise invalid("messages", "messages is empty; give at least one message")
        messages: list[Message] = []
        system = text_of(self.system, "system")
        if drops_billing:
            system = _BILLING.sub("", system)
        if system:
            messages.append({"role": "system", "content": system})
        for index, message in enumerate(self.messages):
            messages += _messages(message, f"messages[{index}]")
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables["enable_thinking"] = self.thinking.get("type") != "disabled"
        effort = (self.output_config or {}).get("effort")
        if effort is not None:
            variables["reasoning_effort"] = {"xhigh": "high", "max": "high"}.get(effort, effort)  # templates know three
        tools = self._tools()
        return Conversation(
            messages,
            tools,
            variables,
            continues=messages[-1]["role"] == "assistant",
            strict=strict_names(self.tools),
            must_call=self._must_call([tool["function"]["name"] for tool in tools]),
        )

    def _tools(self) -> list[Tool]:
        match self.tool_choice:
            case None | {"type": "auto" | "any"} | {"type": "tool", "name": str()}:
                pass
            case {"type": "none"}:
                return []
            case _:
                raise invalid("tool_choice", "tool_choice: give an object with the `type` 'auto', 'any', 'tool' or 'none'")
        return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ()) if _is_clients(tool, index)]

    def _must_call(self, names: Sequence[str]) -> frozenset[str]:
        """Of the tools' names those of which one must be called."""
        match self.tool_choice:
            case {"type": "any"} if names:
                return frozenset(names)
            case {"type": "tool", "name": str(name)} if name in names:
                return frozenset({name})
            case {"type": "any" | "tool"}:
                raise invalid("tool_choice", "tool_choice: what must be called is not among `tools`")
            case _:
                return frozenset()


def _is_clients(tool: Any, index: int) -> bool:
    """Whether the client runs it. Others, such as a search, run at their provider and are not offered to the model."""
    if not isinstance(tool, dict):
        raise invalid(f"tools[{index}]", f"tools[{index}]: a tool is an object")
    return "input_schema" in tool or tool.get("type") in (None, "custom")


def _tool(tool: dict[str, Any], where: str) -> Tool:
    name, schema = tool.get("name"), tool.get("input_schema", {"type": "object", "properties": {}})
    if not isinstance(name, str) or not name or not isinstance(schema, dict):
        raise invalid(where, f"{where}: a tool has a `name` and an `input_schema`")
    description = {"description": tool["description"]} if isinstance(tool.get("description"), str) else {}
    return {"type": "function", "function": {"name": name, **description, "parameters": schema}}


def _messages(message: Any, where: str) -> list[Message]:
    """One of Anthropic's may be several: results of tools are messages of their own."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant", "system"):
        raise invalid(where, f"{where}: a message is an object with the `role` 'user' or 'assistant'")
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list):
        raise invalid(where, f"{where}.content: give a text or an array of blocks")
    result: list[Message] = []
    texts: list[Any] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for index, block in enumerate(blocks):
        place = f"{where}.content[{index}]"
        match block:
            case {"type": "tool_use", "id": str(identity), "name": str(name)}:
                calls.append(tool_call(identity, name, block.get("input")))
            case {"type": "tool_result", "tool_use_id": str(identity)}:
                text = text_of(block.get("content"), place)
                result.append({"role": "tool", "tool_call_id": identity, "content": f"Error: {text}" if block.get("is_error") else text})
            case {"type": "thinking", "thinking": str(text)}:
                reasoning.append(text)
            case {"type": "redacted_thinking"}:
                pass
            case _:
                texts.append(block)
    text = text_of(texts, where)
    if text or calls or not result:
        own: Message = {"role": role, "content": text}
        if calls:
            own["tool_calls"] = calls
        if reasoning:
            own["reasoning_content"] = "".join(reasoning)
        result.append(own)
    return result


class MessagesAnswer:
    """One message. `start` may refuse; then `whole` or `stream`."""

    def __init__(self, front: Front, request: MessagesRequest) -> None:
        self._front = front
        self._request = request
        self._id = f"msg_{uuid.uuid4().hex}"
        self.answers: list[Answer] = []
        self._blocks = Blocks()

    async def start(self, origin: Origin) -> None:
        request = self._request
        if request.max_tokens is None:
            raise HttpError(400, "max_tokens: Field required", param="max_tokens")
        check_count("max_tokens", request.max_tokens)
        read = partial(request.conversation, drops_billing=self._front.drops_nonces)
        conversation = await self._front.conversation(read, request.messages)
        choice = request.token_choice()
        prompt = await self._front.prompt_of(conversation, origin.salt(None))
        reading = self._front.reading(conversation, prompt, choice.constraint, most_calls=request.most_calls)
        self.answers = await begin(self._front, prompt, reading, choice, origin, most_tokens=request.max_tokens)

    async def whole(self) -> dict[str, Any]:
        (answer,) = self.answers
        async for batch in answer.batches():
            for part in batch.parts:
                self._blocks.take(part)
        self._blocks.end()
        return self._message(self._blocks.whole(), self._stop_reason(answer), answer.usage.anthropic(), answer.stop_string)

    async def stream(self) -> AsyncIterator[bytes]:
        """Events from `message_start` to `message_stop`."""
        (answer,) = self.answers
        yield _named({"type": "message_start", "message": self._message([], None, answer.usage.anthropic())})
        yield _named({"type": "ping"})
        async for batch in answer.batches():
            data = b"".join(_named(one) for part in batch.parts for one in self._blocks.take(part))
            if data:
                yield data
        for one in self._blocks.end():
            yield _named(one)
        delta = {"stop_reason": self._stop_reason(answer), "stop_sequence": answer.stop_string}
        yield _named({"type": "message_delta", "delta": delta, "usage": answer.usage.anthropic()})
        yield _named({"type": "message_stop"})

    def _message(self, content: list[Any], reason: str | None, usage: dict[str, Any], stop: str | None = None) -> dict[str, Any]:
        head = {"id": self._id, "type": "message", "role": "assistant", "model": self._front.model}
        return {**head, "content": content, "stop_reason": reason, "stop_sequence": stop, "usage": usage}

    def _stop_reason(self, answer: Answer) -> str:
        match answer.finish_reason:
            case "stop":
                if answer.stop_string is not None:
                    return "stop_sequence"
                return "tool_use" if answer.has_calls else "end_turn"
            case "length" | "abort" | "deadline" | "error":
                return "max_tokens"
        assert_never(answer.finish_reason)


class Blocks:
    """Parts as Anthropic's content blocks, one after the other: each part's events, and the blocks as a whole."""

    def __init__(self) -> None:
        self._open: str | None = None  # the type of the block that is open
        self._blocks: list[dict[str, Any]] = []
        self._arguments: list[str] = []

    def take(self, part: Part) -> list[dict[str, Any]]:
        match part:
            case Content(text):
                events = self._open_text("text", {"type": "text", "text": ""})
                self._blocks[-1]["text"] += text
                return [*events, self._delta({"type": "text_delta", "text": text})]
            case Reasoning(text):
                events = self._open_text("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self._blocks[-1]["thinking"] += text
                return [*events, self._delta({"type": "thinking_delta", "thinking": text})]
            case CallBegin(_, name, identity):
                events = self.end()
                self._arguments = []
                block = {"type": "tool_use", "id": identity or f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": {}}
                return [*events, *self._begin("tool_use", block)]
            case CallArguments(_, text):
                self._arguments.append(text)
                return [self._delta({"type": "input_json_delta", "partial_json": text})]
            case CallEnd():
                return self.end()
        assert_never(part)

    def end(self) -> list[dict[str, Any]]:
        """Close the block that is open."""
        if self._open is None:
            return []
        if self._open == "tool_use":
            self._blocks[-1]["input"] = msgspec.json.decode("".join(self._arguments) or "{}")
        self._open = None
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def whole(self) -> list[dict[str, Any]]:
        return self._blocks

    def _open_text(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        return [] if self._open == kind else [*self.end(), *self._begin(kind, block)]

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        self._open = kind
        self._blocks.append(block)
        return [{"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}


class CountTokens(MessagesRequest, kw_only=True):
    """The same fields; the answer is how many tokens the prompt would have."""

    @property
    def streams(self) -> bool:
        return False


class TokenCount:
    def __init__(self, front: Front, request: CountTokens) -> None:
        self._front = front
        self._request = request
        self._count = 0
        self.answers: list[Answer] = []

    async def start(self, origin: Origin) -> None:
        read = partial(self._request.conversation, drops_billing=self._front.drops_nonces)
        conversation = await self._front.conversation(read, self._request.messages)
        self._count = len((await self._front.read(conversation)).ids)

    async def whole(self) -> dict[str, Any]:
        return {"input_tokens": self._count}


def _named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])
