"""Responses, by OpenAI's own client, and what Codex sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.serve.conftest import Server

from tsrun.serve.responses import messages_of


@pytest.fixture
def client(server: Server) -> Iterator[Any]:  # their types want more than a test has to say
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_stream_and_whole_give_the_same(client: Any) -> None:
    whole = client.responses.create(model="toy", input="hello", instructions="be", max_output_tokens=20, temperature=0)
    with client.responses.stream(model="toy", input="hello", instructions="be", max_output_tokens=20, temperature=0) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    last = events[-1].response
    assert last.output_text == whole.output_text
    assert (last.status, whole.status) == ("incomplete", "incomplete")
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"]
    assert last.usage is not None
    assert last.usage.output_tokens == 20


def test_a_turn_goes_on_from_the_one_before(client: Any) -> None:
    first = client.responses.create(
        model="toy", input="tell me of the long way home through wind and rain", max_output_tokens=30, temperature=0
    )
    second = client.responses.create(model="toy", input="and then?", previous_response_id=first.id, max_output_tokens=8, temperature=0)
    items = [
        {"role": "user", "content": "tell me of the long way home through wind and rain"},
        {"role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]},
        {"role": "user", "content": [{"type": "input_text", "text": "and then?"}]},
    ]
    by_hand = client.responses.create(model="toy", input=items, max_output_tokens=8, temperature=0, store=False)
    assert second.output_text == by_hand.output_text
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 16
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    for gone in (first.id, by_hand.id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)


def test_what_codex_sends_is_taken(server: Server) -> None:
    body = {
        "model": "toy",
        "store": False,
        "stream": True,
        "parallel_tool_calls": True,
        "prompt_cache_key": "0199-aaaa",
        "client_metadata": {"x": "y"},
        "include": ["reasoning.encrypted_content"],
        "tool_choice": "auto",
        "reasoning": {"effort": "medium", "summary": "auto"},
        "tools": [
            {
                "type": "function",
                "name": "shell",
                "strict": False,
                "parameters": {"type": "object", "properties": {"command": {"type": "array"}}},
            },
            {"type": "namespace", "name": "mcp", "tools": []},
            {"type": "web_search"},
        ],
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "do it"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": None},
            {"type": "function_call", "name": "shell", "call_id": "c1", "arguments": '{"command": ["ls"]}'},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
        ],
        "max_output_tokens": 6,
    }
    with server.client() as client, client.stream("POST", "/v1/responses", json=body) as stream:
        assert stream.status_code == 200
        names = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert names[0] == "response.created"
    assert names[-1] in ("response.completed", "response.incomplete")


def test_functions_of_a_namespace_are_called_by_their_two_names(client: Any) -> None:
    search = {"type": "function", "name": "search", "description": "Find.", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "namespace", "name": "mcp__books__", "description": "A library.", "tools": [search, {"type": "custom", "name": "c"}]}]
    asked = {"model": "toy", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 300}
    whole = client.responses.create(input="find it", temperature=0, **asked)
    (item,) = whole.output
    assert (item.type, item.namespace, item.name, item.status) == ("function_call", "mcp__books__", "search", "completed")
    with client.responses.stream(input="find it", temperature=0, **asked) as stream:
        events = list(stream)
    added = next(event.item for event in events if event.type == "response.output_item.added")
    assert (added.namespace, added.name) == ("mcp__books__", "search")
    assert events[-1].response.output[0].arguments == item.arguments
    # The call comes back with both names, and is a call of what was offered.
    call = {key: value for key, value in item.to_dict().items() if key in ("type", "call_id", "namespace", "name", "arguments")}
    result = {"type": "function_call_output", "call_id": item.call_id, "output": "a book"}
    assert messages_of([call, result])[0]["tool_calls"][0]["function"]["name"] == "mcp__books__search"
    again = client.responses.create(input=[{"role": "user", "content": "find it"}, call, result], **asked | {"tool_choice": "auto"})
    assert again.status in ("completed", "incomplete")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"background": True}, "background"),
        ({"tools": [{"type": "namespace", "name": "", "tools": []}]}, "a namespace has a `name`"),
        ({"tools": [{"type": "namespace", "name": "a", "tools": [{"name": ""}]}]}, "a tool is an object with a `name`"),
        (
            {"tools": [{"type": "namespace", "name": "a", "tools": [{"name": "f"}]}, {"type": "function", "name": "a__f"}]},
            "`a__f` is also what a function of a namespace is called here",
        ),
        ({"tools": [{"type": "namespace", "name": n, "tools": [{"name": "f"}]} for n in ("a", "a_")]}, "`a__f` is there already"),
        ({"truncation": "auto"}, "truncation"),
        ({"previous_response_id": "resp_x"}, "not found"),
        ({"input": []}, "input"),
        ({"input": [{"type": "computer_call"}]}, "computer_call"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item itself"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_not_done_is_refused_by_name(server: Server, fields: dict[str, object], said: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/responses", json={"model": "toy", "input": "x", **fields})
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]
