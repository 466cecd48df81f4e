"""Strict tools, and reasoning before an answer of a form, through every API: a model that wants to write something else may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from tests.serve.conftest import Server, start
from tests.serve.willing_engine import ask

from tsrun.parsing import Tool, named
from tsrun.serve.constraints import whole
from tsrun.serve.front import _can_call
from tsrun.serve.http_errors import HttpError

SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "days": {"$ref": "#/$defs/count"}},
    "required": ["unit", "days"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
}
FUNCTION = {"name": "weather", "parameters": SCHEMA}
STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}
LOOSE = {"type": "function", "function": {**FUNCTION, "name": "loose"}}


def call(arguments: str, name: str = "weather") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


GOOD = '{"unit": "F", "days": 3}'
WRONG = '{"unit": "K", "days": 0}'
"""As long as it should be: what the model wants to write after it still fits."""


@pytest.fixture(scope="module")
def willing(model: Path) -> Iterator[Server]:
    running = start(model, "--reasoning-parser", "think", module="tests.serve.willing_server")
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(willing: Server) -> Any:
    return openai.OpenAI(base_url=f"{willing.url}/v1", api_key="none", max_retries=0)


def chat(client: Any, text: str, **more: Any) -> Any:
    asked = {"model": "toy", "messages": [{"role": "user", "content": ask(text)}], "temperature": 0, "max_tokens": 300, **more}
    return client.chat.completions.create(**asked).choices[0]


def follows(arguments: str) -> bool:
    found = json.loads(arguments)
    return list(found) == ["unit", "days"] and found["unit"] in ("C", "F") and 1 <= found["days"] <= 9


def test_an_answer_may_be_text_or_calls_that_follow_the_schema(client: Any) -> None:
    text = chat(client, "No < tool is needed.", tools=[STRICT])
    assert (text.message.content, text.message.tool_calls, text.finish_reason) == ("No < tool is needed.", None, "stop")
    good = chat(client, f"Let me see.\n{call(GOOD)}\n{call(GOOD)}\nSo.", tools=[STRICT, LOOSE])
    assert good.message.content == "Let me see.\nSo."
    assert [one.function.arguments for one in good.message.tool_calls] == [GOOD, GOOD]
    wrong = chat(client, f"Hm. {call(WRONG)}", tools=[LOOSE, STRICT])
    (made,) = wrong.message.tool_calls
    assert (wrong.message.content, made.function.name) == ("Hm.", "weather")
    assert follows(made.function.arguments)


def test_a_call_that_a_stop_string_cuts_is_not_told_of_as_one(client: Any) -> None:
    cut = chat(client, call(GOOD), tools=[STRICT], stop=['"days"'])
    assert (cut.finish_reason, json.loads(cut.message.tool_calls[0].function.arguments)) == ("stop", {"unit": "F"})
    asked = {"model": "toy", "input": ask(call(GOOD)), "tools": [{"type": "function", **FUNCTION, "strict": True}], "temperature": 0}
    whole, short = (client.responses.create(**asked, max_output_tokens=most) for most in (300, len(call(GOOD)) - 20))
    assert [(one.status, one.output[-1].status) for one in (whole, short)] == [("completed", "completed"), ("incomplete", "incomplete")]


def test_what_is_not_strict_is_free_beside_what_is(client: Any) -> None:
    assert chat(client, call(WRONG), tools=[LOOSE, STRICT]).message.tool_calls[0].function.arguments != WRONG
    for tools in ([LOOSE], [LOOSE, STRICT]):
        (made,) = chat(client, call(WRONG, "loose"), tools=tools).message.tool_calls
        assert (made.function.name, made.function.arguments) == ("loose", WRONG)


def test_reasoning_is_free_and_calls_within_it_are_text(client: Any) -> None:
    thought = f"Perhaps {call(WRONG)}?"
    found = chat(client, f"<think>{thought}</think>\n\n{call(WRONG)}", tools=[STRICT])
    assert found.message.reasoning_content == thought
    assert follows(found.message.tool_calls[0].function.arguments)
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = chat(client, f"<think>{thought}</think>\n\nBut no.", tools=[STRICT, LOOSE], tool_choice=choice)
        assert (found.message.reasoning_content, found.message.content) == (thought, None)
        (made,) = found.message.tool_calls
        assert made.function.name == "weather" or choice == "required"


def test_a_form_holds_for_what_follows_the_reasoning(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for more in (
        {"response_format": form},
        {"regex": r"\{.unit.: .[CF]., .days.: [1-9]\}"},
        {"choice": [GOOD, '{"unit": "C", "days": 1}']},
    ):
        fields = {"response_format": form} if "response_format" in more else {"extra_body": more}
        for thought in ("It is {\n\n}.", None):
            begin = "" if thought is None else f"<think>{thought}</think>\n\n"
            found = chat(client, f"{begin}{GOOD}", **fields)
            assert getattr(found.message, "reasoning_content", None) == thought
            assert (found.message.content, found.finish_reason) == (GOOD, "stop")
            assert follows(chat(client, f"{begin}{WRONG}", **fields).message.content)
    streamed = list(
        client.chat.completions.create(
            model="toy",
            messages=[{"role": "user", "content": ask(f"<think>so</think>{WRONG}")}],
            response_format=form,
            temperature=0,
            stream=True,
        )
    )
    assert "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in streamed) == "so"
    assert follows("".join(chunk.choices[0].delta.content or "" for chunk in streamed))


def test_strict_calls_may_be_made_instead_of_an_answer_of_a_form(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    made = chat(client, call(WRONG), tools=[STRICT], response_format=form)
    assert (made.message.content, follows(made.message.tool_calls[0].function.arguments)) == (None, True)
    assert chat(client, '"yes"', tools=[STRICT], response_format=form).message.content == '"yes"'


def test_responses_and_messages_have_strict_tools_too(client: Any, willing: Server) -> None:
    asked = {"model": "toy", "input": ask(f"<think>so</think>{call(WRONG)}"), "temperature": 0}
    items = client.responses.create(**asked, tools=[{"type": "function", **FUNCTION, "strict": True}]).output
    assert [item.type for item in items] == ["reasoning", "function_call"]
    assert follows(items[1].arguments)
    loose = client.responses.create(**asked, tools=[{"type": "function", **FUNCTION}]).output
    assert loose[1].arguments == WRONG
    messages: Any = anthropic.Anthropic(base_url=willing.url, api_key="none", max_retries=0).messages
    for strict in (True, False):
        tools = [{"name": "weather", "input_schema": SCHEMA, "strict": strict}]
        prompt: Any = [{"role": "user", "content": ask(call(WRONG))}]
        (block,) = messages.create(model="toy", max_tokens=300, messages=prompt, tools=tools, extra_body={"temperature": 0}).content
        assert follows(json.dumps(block.input)) == strict


def test_tokens_are_the_same_in_any_company(client: Any, willing: Server) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": ask(f"Hm. {call(WRONG)}")}], "tools": [STRICT], "temperature": 0}
    with willing.client() as http:
        alone = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["tool_calls"][0]["function"]
        for choice in http.post("/v1/chat/completions", json={**body, "n": 3}).json()["choices"]:
            assert choice["message"]["tool_calls"][0]["function"] == alone


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": "yes"}}]}, "`strict` is true or false"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "array"}}}]}, "no object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"uniqueItems": True}}}]}, "uniqueItems"),
        ({"tools": [STRICT], "tool_choice": "required", "extra_body": {"regex": "x"}}, "constrained twice"),
    ],
)
def test_what_can_not_hold_is_refused(client: Any, fields: dict[str, Any], said: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=said):
            chat(client, "x", stream=stream, **fields)


def test_a_format_without_words_for_calls_is_refused_unless_a_call_is_required() -> None:
    tool = Tool("weather", SCHEMA, strict=True)
    for name, can in (("pythonic", False), ("gemma3", False), ("hermes", True), ("glm", True)):
        choice = named(tools=name)
        assert _can_call(choice, [tool]) == can
        if not can:
            with pytest.raises(HttpError, match=f"tools: .* how `{name}` writes calls") as refusal:
                whole(None, choice, [tool], must_call=False, starts_inside=False, special_id=lambda text: None)
            assert (refusal.value.status, refusal.value.param) == (400, "tools")
        loose = replace(tool, strict=False)
        assert whole(None, choice, [loose], must_call=False, starts_inside=False, special_id=lambda text: None) is None
    assert not _can_call(named(tools="glm"), [Tool("f", {"properties": {"a": {"type": "string", "pattern": "x"}}}, strict=True)])
