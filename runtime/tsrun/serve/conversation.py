"""A conversation in the form that chat templates take, whichever API it came by; and the way from there to a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsrun.serve.http_errors import HttpError, unsupported

Message = dict[str, Any]
Tool = Mapping[str, Any]
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: with `role`, `content` (a text), and perhaps `tool_calls`, `tool_call_id`, `reasoning_content`; tools: in OpenAI's form,
    `{"type": "function", "function": {…}}`; variables: what else the template is given; continues: the answer goes on from the last
    message, which the assistant has begun; strict: names of tools whose arguments must follow their schemas; must_call: of those of which
    one must be called, and nothing else be answered."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    strict: frozenset[str] = frozenset()
    must_call: frozenset[str] = frozenset()


def openai_messages(messages: Sequence[Any], param: str = "messages") -> list[Message]:
    """Of chat completions, checked; arguments of calls as objects, which templates render."""
    if not messages:
        raise HttpError(400, f"{param} is empty; give at least one message", param=param, code="invalid_value")
    return [_message(message, f"{param}[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong(where, "a message is an object with a `role`")
    role = message["role"]
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"got '{role}'; give one of {', '.join(_ROLES)}")
    result: Message = {
        "role": {"developer": "system", "function": "tool"}.get(role, role),
        "content": text_of(message.get("content"), where),
    }
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            result[name] = message[name]
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str):
        result["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise _wrong(f"{where}.tool_calls", "give an array")
        result["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return result


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _wrong(where, "a call is an object with `function.name` and `function.arguments`")
    return tool_call(str(call.get("id") or ""), function["name"], function.get("arguments"))


def tool_call(identity: str, name: str, arguments: Any) -> dict[str, Any]:
    """As templates take it. Arguments that are no JSON stay the text that they are."""
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            parsed = arguments
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": {} if arguments is None else arguments}}


def text_of(content: Any, where: str) -> str:
    """The text of a message's content: a text, parts of text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "give a text or an array of parts")
    return "".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return text
    if kind in ("image_url", "input_image", "image", "input_audio", "file", "input_file", "document", "video_url"):
        raise unsupported(where, f"parts of type '{kind}' are not read by this model; send text")
    raise _wrong(where, "give a part with `type` 'text' and `text`")


def _wrong(where: str, what: str) -> HttpError:
    return HttpError(400, f"{where}: {what}", param=where, code="invalid_value")
