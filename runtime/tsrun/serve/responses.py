"""`/v1/responses`: OpenAI's newer form, a list of items in and a list of items out, which the server keeps for the next turn."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, assert_never

import msgspec

from tsrun.parsing import CallArguments, CallBegin, CallEnd, Content, Part, Reasoning
from tsrun.serve.answers import Answer, Origin, begin
from tsrun.serve.constraints import of_format
from tsrun.serve.conversation import Conversation, Message, text_of, tool_call
from tsrun.serve.front import Front
from tsrun.serve.http_errors import invalid, unsupported
from tsrun.serve.kept_responses import KeptResponse
from tsrun.serve.namespaces import Names, joined, ungrouped
from tsrun.serve.sampling_fields import SamplingFields, TokenChoice, check_count
from tsrun.serve.shared_state import FindResponse, KeepResponse
from tsrun.serve.sse import event
from tsrun.serve.tools import must_call, offered, strict_names

Item = dict[str, Any]


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The fields that are known. `include`, `metadata`, `store` and others that change no token are taken as they are."""

    input: Any
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    metadata: dict[str, Any] | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    prompt_cache_key: str | None = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    def check(self) -> None:
        check_count("max_output_tokens", self.max_output_tokens)
        if self.background:
            raise unsupported("background", "ask again with `stream`")
        if self.conversation is not None:
            raise unsupported("conversation", "send `previous_response_id` or the items themselves")
        if self.top_logprobs:
            raise unsupported("top_logprobs", "chat completions give log probabilities")
        if self.truncation == "auto":
            raise unsupported("truncation", "shorten the input, or send 'disabled'")

    def token_choice(self) -> TokenChoice:
        choice = SamplingFields(temperature=self.temperature, top_p=self.top_p).token_choice()
        return replace(choice, constraint=of_format((self.text or {}).get("format"), "text.format"))


def messages_of(items: list[Item]) -> list[Message]:
    """Items as the messages that templates take: an answer's reasoning, text and calls are one message."""
    messages: list[Message] = []

    def assistant() -> Message:
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        return messages[-1]

    for index, item in enumerate(items):
        where = f"input[{index}]"
        match item:
            case {"type": "function_call", "name": str(name), "call_id": str(identity)}:
                if isinstance(item.get("namespace"), str):
                    name = joined(item["namespace"], name)
                assistant().setdefault("tool_calls", []).append(tool_call(identity, name, item.get("arguments")))
            case {"type": "function_call_output", "call_id": str(identity)}:
                output = item.get("output")
                messages.append({"role": "tool", "tool_call_id": identity, "content": text_of(output, where)})
            case {"type": "reasoning"}:
                parts = item.get("content") or item.get("summary") or []
                text = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict)) if isinstance(parts, list) else ""
                if text:
                    message = assistant()
                    message["reasoning_content"] = message.get("reasoning_content", "") + text
            case {"role": str(role)} if item.get("type", "message") == "message":
                if role not in ("user", "assistant", "system", "developer"):
                    raise invalid(where, f"{where}.role: got '{role}'; give 'user', 'assistant', 'system' or 'developer'")
                text = text_of(item.get("content"), where)
                if role == "assistant":
                    message = assistant()
                    message["content"] = f"{message['content']}{text}"
                else:
                    messages.append({"role": "system" if role == "developer" else role, "content": text})
            case {"type": "item_reference"}:
                raise unsupported(f"{where}.type", "send the item itself")
            case {"type": str(kind)}:
                raise unsupported(f"{where}.type", f"items of type '{kind}' are not known")
            case _:
                raise invalid(where, f"{where}: an item has a `type`, or a `role` and `content`")
    return messages


class ResponseAnswer:
    """One response. `start` may refuse; then `whole` or `stream`."""

    def __init__(self, front: Front, request: ResponsesRequest) -> None:
        self._front = front
        self._request = request
        self.answers: list[Answer] = []
        self._items: list[Item] = []
        self._origin = Origin()
        self._response = self._new_response()
        self._sequence = 0
        self._tools, names = ungrouped(request.tools or ())
        self._output = OutputItems(self._response["output"], names)

    async def start(self, origin: Origin) -> None:
        request = self._request
        request.check()
        given = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
        if not isinstance(given, list) or not given:
            raise invalid("input", "input: give a text or an array of items")
        self._origin, self._items = origin, [*await self._earlier(origin), *given]
        conversation = await self._front.conversation(self._conversation, self._items)
        choice = request.token_choice()
        prompt = await self._front.prompt_of(conversation, origin.salt(None))
        most_calls = 1 if request.parallel_tool_calls is False else None
        reading = self._front.reading(conversation, prompt, choice.constraint, most_calls=most_calls)
        self.answers = await begin(self._front, prompt, reading, choice, origin, most_tokens=request.max_output_tokens)

    async def _earlier(self, origin: Origin) -> list[Item]:
        """Of the response that this one goes on from, up to its end."""
        if self._request.previous_response_id is None:
            return []
        kept = await self._front.state.ask(FindResponse(origin.user, self._request.previous_response_id))
        items: list[Item] = msgspec.json.decode(kept.items)
        return items

    def _conversation(self) -> Conversation:
        request = self._request
        instructions: list[Message] = [{"role": "system", "content": request.instructions}] if request.instructions else []
        effort = (request.reasoning or {}).get("effort")
        variables = {} if effort is None else {"reasoning_effort": effort}
        tools = offered(self._tools, request.tool_choice)
        called = must_call(tools, request.tool_choice)
        return Conversation(
            [*instructions, *messages_of(self._items)], tools, variables, strict=strict_names(self._tools), must_call=called
        )

    async def whole(self) -> dict[str, Any]:
        (answer,) = self.answers
        async for batch in answer.batches():
            for part in batch.parts:
                self._output.take(part)
        self._output.end(_status(answer))
        await self._finish(answer)
        return self._response

    async def stream(self) -> AsyncIterator[bytes]:
        """Events from `response.created` to `response.completed` or `response.incomplete`."""
        (answer,) = self.answers
        yield self._event("response.created", {"response": self._response})
        yield self._event("response.in_progress", {"response": self._response})
        async for batch in answer.batches():
            data = b"".join(self._event(kind, fields) for part in batch.parts for kind, fields in self._output.take(part))
            if data:
                yield data
        for kind, fields in self._output.end(_status(answer)):
            yield self._event(kind, fields)
        await self._finish(answer)
        yield self._event(f"response.{self._response['status']}", {"response": self._response})

    async def _finish(self, answer: Answer) -> None:
        self._response["status"] = _status(answer)
        if answer.finish_reason != "stop":
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._response["usage"] = answer.usage.responses()
        if self._request.store is not False:
            items = msgspec.json.encode([*self._items, *self._response["output"]])
            kept = KeptResponse(items, msgspec.json.encode(self._response))
            await self._front.state.ask(KeepResponse(self._origin.user, self._response["id"], kept))

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence - 1, **fields}, kind)

    def _new_response(self) -> dict[str, Any]:
        request = self._request
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._front.model,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": (request.reasoning or {}).get("effort"), "summary": None},
            "store": request.store is not False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
            "tools": request.tools or [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": request.metadata or {},
        }


Events = list[tuple[str, dict[str, Any]]]


class OutputItems:
    """Parts as items, one after the other: each part's events, and the items as they grow."""

    def __init__(self, items: list[Item], names: Names) -> None:
        self._items = items
        self._names = names
        self._open: str | None = None  # the type of the item that is open
        self._text = ""

    def take(self, part: Part) -> Events:
        match part:
            case Content(text):
                return [*self._ensure("message"), *self._grow("response.output_text.delta", text, {"content_index": 0, "logprobs": []})]
            case Reasoning(text):
                return [*self._ensure("reasoning"), *self._grow("response.reasoning_text.delta", text, {"content_index": 0})]
            case CallBegin(_, name, identity):
                events = self.end()
                call = identity or f"call_{uuid.uuid4().hex[:24]}"
                head = {"id": _id("fc"), "type": "function_call", "status": "in_progress", "call_id": call}
                item = {**head, **self._names.fields(name), "arguments": ""}
                return [*events, *self._begin("function_call", item)]
            case CallArguments(_, text):
                return self._grow("response.function_call_arguments.delta", text, {})
            case CallEnd(_, complete):
                return self.end("completed" if complete else "incomplete")
        assert_never(part)

    def end(self, status: str = "completed") -> Events:
        """Close the item that is open."""
        kind, self._open = self._open, None
        if kind is None:
            return []
        item, place = self._items[-1], self._place()
        events: Events = []
        if kind == "message":
            part = {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}
            item["content"] = [part]
            events = [
                ("response.output_text.done", {**place, "content_index": 0, "text": self._text, "logprobs": []}),
                ("response.content_part.done", {**place, "content_index": 0, "part": part}),
            ]
        elif kind == "reasoning":
            item["content"] = [{"type": "reasoning_text", "text": self._text}]
            events = [("response.reasoning_text.done", {**place, "content_index": 0, "text": self._text})]
        else:
            item["arguments"] = self._text
            events = [("response.function_call_arguments.done", {**place, "name": item["name"], "arguments": self._text})]
        if kind != "reasoning":
            item["status"] = status
        return [*events, ("response.output_item.done", {"output_index": place["output_index"], "item": item})]

    def _ensure(self, kind: str) -> Events:
        if self._open == kind:
            return []
        events = self.end()
        if kind == "reasoning":
            return [*events, *self._begin(kind, {"id": _id("rs"), "type": "reasoning", "summary": [], "content": []})]
        item = {"id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        begun = self._begin(kind, item)
        return [*events, *begun, ("response.content_part.added", {**self._place(), "content_index": 0, "part": part})]

    def _begin(self, kind: str, item: Item) -> Events:
        self._open, self._text = kind, ""
        self._items.append(item)
        return [("response.output_item.added", {"output_index": len(self._items) - 1, "item": dict(item)})]

    def _grow(self, kind: str, text: str, fields: dict[str, Any]) -> Events:
        self._text += text
        return [(kind, {**self._place(), **fields, "delta": text})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _status(answer: Answer) -> str:
    """Of an answer that is over, and of its last item."""
    return "completed" if answer.finish_reason == "stop" else "incomplete"
