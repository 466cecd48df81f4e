"""Messages, by Anthropic's own client, and what Claude Code sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import pytest
from pydantic import BaseModel
from tests.serve.conftest import Server, start

from tsrun.serve.anthropic import MessagesRequest


@pytest.fixture
def client(server: Server) -> Iterator[Any]:  # their types want more than a test has to say
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_stream_and_whole_give_the_same(client: Any) -> None:
    asked = {"model": "toy", "max_tokens": 24, "system": "be", "messages": [{"role": "user", "content": "hello"}]}
    whole = client.messages.create(**asked, extra_body={"temperature": 0})
    with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text == last.content[0].text
    assert last.stop_reason == whole.stop_reason == "max_tokens"
    usage = last.usage
    assert usage.output_tokens == whole.usage.output_tokens == 24
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == whole.usage.input_tokens


def test_tokens_are_counted_as_they_are_charged(client: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "count me"}]}]
    counted = client.messages.count_tokens(model="toy", messages=messages)
    answer = client.messages.create(model="toy", max_tokens=1, messages=messages)
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_what_claude_code_sends_is_taken(server: Server) -> None:
    """A system message among the others, adaptive thinking, tools of providers; the build's name does not reach the prompt."""
    body = {
        "model": "toy",
        "max_tokens": 32000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": []},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.123; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": "S"},
        ],
        "tools": [{"name": "Bash", "input_schema": {"type": "object"}}, {"type": "web_search_20250305", "name": "web_search"}],
        "messages": [
            {"role": "user", "content": "run ls"},
            {"role": "system", "content": "note"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a.py"}]}]},
        ],
    }
    with server.client() as client:
        assert client.head("/").status_code in (200, 404, 405)
        first = client.post("/v1/messages/count_tokens?beta=true", json=body).json()["input_tokens"]
        body["system"][0]["text"] = "x-anthropic-billing-header: cc_version=2.1.198.999999999; cch=00f1; cc_entrypoint=cli;"  # type: ignore[index]
        assert client.post("/v1/messages/count_tokens?beta=true", json=body).json()["input_tokens"] == first
        answer = client.post("/v1/messages?beta=true", json={**body, "stop_sequences": ["\n"], "max_tokens": 5})
        assert answer.status_code == 200


def test_an_answer_is_of_the_format_that_was_asked_for(client: Any) -> None:
    class Thing(BaseModel):
        color: Literal["red", "green"]

    asked = {"model": "toy", "max_tokens": 200, "messages": [{"role": "user", "content": "a color"}]}
    assert client.messages.parse(**asked, output_format=Thing).parsed_output.color in ("red", "green")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    with client.messages.stream(**asked, output_config={"format": {"type": "json_schema", "schema": schema}}) as stream:
        assert json.loads(stream.get_final_text())["n"] in (1, 2)


def test_effort_reaches_the_template() -> None:
    asked: dict[str, Any] = {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    efforts = [MessagesRequest(**asked, output_config={"effort": effort}) for effort in ("low", "max")]
    assert [one.conversation(drops_billing=True).variables["reasoning_effort"] for one in efforts] == ["low", "high"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format: give"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0]"),
        ({"tools": [{"input_schema": {}}]}, "tools[0]"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "maximum context length is 4096 tokens"),
    ],
)
def test_errors_have_anthropics_form(server: Server, change: dict[str, object], said: str) -> None:
    body = {"model": "toy", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}], **change}
    with server.client() as client:
        answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    error = answer.json()
    assert (error["type"], error["error"]["type"], said in error["error"]["message"]) == ("error", "invalid_request_error", True), error


def test_nonces_stay_where_they_are_wanted(model: Path) -> None:
    running = start(model, "--keep-nonces")
    try:
        with running.client() as client:
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "system": "x-anthropic-billing-header: cc_version=1;"}
            kept = client.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
            plain = client.post("/v1/messages/count_tokens", json={"messages": body["messages"]}).json()["input_tokens"]
        assert kept > plain + 30
    finally:
        assert running.stop() == 0
