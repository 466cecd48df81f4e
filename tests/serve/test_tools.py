"""Calls of tools through every API. A constraint that has one choice says what the model writes; all else is real."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from tests.serve.conftest import Server

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 3}}\n</tool_call>'
TEXT = f"Let me see.\n{CALL}\n{CALL.replace('Köln', 'Rom')}"
ARGUMENTS = [{"city": "Köln", "days": 3}, {"city": "Rom", "days": 3}]
ASK = [{"role": "user", "content": "weather?"}]


@pytest.fixture
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def written(text: str) -> dict[str, Any]:
    return {"extra_body": {"choice": [text]}}


def test_calls_of_a_chat_come_streamed_as_they_come_whole(client: Any) -> None:
    whole = client.chat.completions.create(model="toy", messages=ASK, tools=[TOOL], **written(TEXT)).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content == "Let me see."
    assert [json.loads(call.function.arguments) for call in whole.message.tool_calls] == ARGUMENTS
    calls: dict[int, dict[str, Any]] = {}
    text, reasons = "", []
    unknown = {**written(TEXT)["extra_body"], "cache_salt": "another"}  # else the answer before is drafted, and comes in few pieces
    for chunk in client.chat.completions.create(model="toy", messages=ASK, tools=[TOOL], stream=True, extra_body=unknown):
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or ():
            if call.id:
                calls[call.index] = {"id": call.id, "name": call.function.name, "pieces": []}
            calls[call.index]["pieces"].append(call.function.arguments)
    assert (text, reasons) == ("Let me see.", ["tool_calls"])
    assert [json.loads("".join(call["pieces"])) for call in calls.values()] == ARGUMENTS
    assert all(len(call["pieces"]) > 4 for call in calls.values()), "arguments come in pieces"
    assert len({call["id"] for call in calls.values()}) == 2


def test_without_tools_a_call_is_text(client: Any) -> None:
    for more in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        message = client.chat.completions.create(model="toy", messages=ASK, **more, **written(CALL)).choices[0].message
        assert (message.content, message.tool_calls) == (CALL, None)


def test_one_call_is_enough_where_no_others_may_run_beside_it(client: Any) -> None:
    for stream in (False, True):
        asked = {"model": "toy", "messages": ASK, "tools": [TOOL], "parallel_tool_calls": False, **written(TEXT)}
        if stream:
            deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
            indices = {call.index for delta in deltas for call in delta.tool_calls or ()}
        else:
            indices = set(range(len(client.chat.completions.create(**asked).choices[0].message.tool_calls)))
        assert indices == {0}


def test_a_required_call_is_one(client: Any) -> None:
    other = {
        "type": "function",
        "function": {"name": "other", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    }
    schema = {
        **SCHEMA,
        "additionalProperties": False,
        "properties": {"city": {"enum": ["a", "b"]}, "days": {"type": "integer", "maximum": 9}},
    }
    strict = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(model="toy", messages=ASK, tools=[strict, other], tool_choice=choice, seed=3).choices[0]
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert call.function.name in ("weather", "other")
        if call.function.name == "weather":
            assert json.loads(call.function.arguments)["city"] in ("a", "b")


def test_messages_have_calls_as_blocks(server: Server) -> None:
    client: Any = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    tools: Any = [{"name": "weather", "input_schema": {**SCHEMA, "additionalProperties": False}}]
    schema = {"type": "tool", "name": "weather"}
    whole = client.messages.create(
        model="toy",
        max_tokens=900,
        messages=ASK,
        tools=tools,
        tool_choice=schema,
        extra_body={"temperature": 0},
    )
    assert [block.type for block in whole.content] == ["tool_use"]
    assert whole.stop_reason in ("tool_use", "max_tokens")
    with client.messages.stream(
        model="toy",
        max_tokens=900,
        messages=ASK,
        tools=tools,
        tool_choice=schema,
        extra_body={"temperature": 0},
    ) as stream:
        last = stream.get_final_message()
    assert last.content[0].input == whole.content[0].input


def test_responses_have_calls_as_items(client: Any) -> None:
    tool = {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False},
    }
    whole = client.responses.create(model="toy", input="weather?", tools=[tool], tool_choice="required", temperature=0)
    (call,) = whole.output
    assert (call.type, call.name, json.loads(call.arguments)["n"] in (1, 2)) == ("function_call", "weather", True)
    with client.responses.stream(model="toy", input="weather?", tools=[tool], tool_choice="required", temperature=0) as stream:
        last = stream.get_final_response()
    assert last.output[0].arguments == call.arguments
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "function_call", "name": "weather", "call_id": call.call_id, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
    ]
    assert client.responses.create(model="toy", input=items, tools=[tool], max_output_tokens=3).output
