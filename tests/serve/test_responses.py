"""Responses, by OpenAI's own client, and what Codex sends."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from tests.serve.conftest import Server


@pytest.fixture
def client(server: Server) -> Any:  # their types want more than a test has to say
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"background": True}, "background"),
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
