"""Renders a conversation with the checkpoint's template, also where the template knows less than the APIs.

Templates differ in what they take: a system message only at the beginning, none at all, turns that alternate, no tools. What one refuses is
said to it in another way; the first way that it takes is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tsrun.errors import RequestError
from tsrun.serve.conversation import Conversation, Message, Tool
from tsrun.tokenizer import Tokenizer

TOOLS_AS_TEXT = "hermes"
"""The format in which a model is asked to call tools where its template knows of none."""
_TOOLS_INTRODUCTION = """\
# Tools

You may call one or more functions to assist with the user query. Their signatures are within <tools></tools> tags:
<tools>
{signatures}
</tools>

For each function call return a JSON object with the function's name and arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def render(tokenizer: Tokenizer, conversation: Conversation) -> str:
    """The prompt's text. RequestError, of the first way, where the template takes none."""
    if conversation.tools and not knows_tools(tokenizer.template_source):
        conversation = replace(conversation, messages=_tools_as_text(conversation), tools=())
    variables = dict(conversation.variables)
    if conversation.continues:
        variables["add_generation_prompt"] = False
    refused: RequestError | None = None
    for messages in _ways(conversation.messages):
        try:
            text = tokenizer.render_chat(messages, conversation.tools, variables)
        except RequestError as error:
            refused = refused or error
        else:
            return _cut_after_content(text, messages[-1]) if conversation.continues else text
    assert refused is not None
    raise refused


def knows_tools(template_source: str | None) -> bool:
    return template_source is not None and "tools" in template_source


def _ways(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    yield messages
    # A system message that comes later is the user's for a template that wants it first.
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    system = [m["content"] for m in messages[:first]]
    head: list[Message] = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    rest: list[Message] = [{**m, "role": "user"} if m["role"] == "system" else m for m in messages[first:]]
    yield [*head, *rest]
    yield [*head, *alternating(rest)]
    if head:
        yield alternating([{"role": "user", "content": head[0]["content"]}, *rest])
    yield alternating([*({"role": "user", "content": m["content"]} for m in head), *map(_as_plain_text, rest)])


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message."""
    runs: list[list[Message]] = []
    for message in messages:
        if runs and runs[-1][0]["role"] == message["role"] in ("user", "assistant") and not message.get("tool_calls"):
            runs[-1].append(message)
        else:
            runs.append([message])
    return [{**run[0], "content": "\n\n".join(m["content"] for m in run)} if run[1:] else run[0] for run in runs]


def _as_plain_text(message: Message) -> Message:
    """Calls and their results as text, in the form that Hermes' models made common."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [f"<tool_call>\n{json.dumps(c['function'], ensure_ascii=False)}\n</tool_call>" for c in calls]
    return {"role": message["role"], "content": "\n".join([*([message["content"]] if message["content"] else []), *texts])}


def _tools_as_text(conversation: Conversation) -> list[Message]:
    """For a template that has no word for tools: in the system message, calls and results in the conversation."""
    introduction = _TOOLS_INTRODUCTION.format(signatures="\n".join(_signature(tool) for tool in conversation.tools))
    messages = [_as_plain_text(message) for message in conversation.messages]
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{introduction}"}, *messages[1:]]
    return [{"role": "system", "content": introduction}, *messages]


def _signature(tool: Tool) -> str:
    return json.dumps(tool, ensure_ascii=False)


def _cut_after_content(text: str, message: Message) -> str:
    """Up to the end of the last message's content, which the model is to continue."""
    content = message["content"].strip()
    at = text.rfind(content)
    return text[: at + len(content)] if content and at >= 0 else text
