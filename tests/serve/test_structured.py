"""Answers of a form, log probabilities, biases: what a request may ask of its tokens, by OpenAI's own client."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from tests.serve.conftest import Server

from tsrun.tokenizer import Tokenizer

ASK: Any = [{"role": "user", "content": "say"}]


@pytest.fixture
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


class Colour(BaseModel):
    name: Literal["red", "green"]
    dark: bool


def test_parse_gives_an_object_of_the_class(client: Any) -> None:
    found = client.chat.completions.parse(model="toy", messages=ASK, response_format=Colour, seed=1)
    assert isinstance(found.choices[0].message.parsed, Colour)
    assert found.choices[0].finish_reason == "stop"
    by_responses = client.responses.parse(model="toy", input="say", text_format=Colour)
    assert isinstance(by_responses.output_parsed, Colour)


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"regex": "[ab]{3}-[0-9]{2}"}, "[ab]{3}-[0-9]{2}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "x" DIGIT\nDIGIT: /[0-9]/'}, "x[0-9]"),
        ({"guided_regex": "q{2}"}, "qq"),
        ({"structured_outputs": {"choice": ["only"]}}, "only"),
    ],
)
def test_an_answer_is_of_its_form_in_any_api(client: Any, fields: dict[str, Any], form: str) -> None:
    chat = client.chat.completions.create(model="toy", messages=ASK, extra_body=fields).choices[0]
    text = client.completions.create(model="toy", prompt="say", extra_body=fields).choices[0]
    for found, reason in ((chat.message.content, chat.finish_reason), (text.text, text.finish_reason)):
        assert re.fullmatch(form, found)
        assert reason == "stop"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wrong"}}}}, "wrong"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}}, "uniqueItems"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"extra_body": {"regex": "("}}, "regex"),
        ({"extra_body": {"grammar": "start: nothing"}}, "nothing"),
        ({"extra_body": {"choice": ["a"], "regex": "a"}}, "constrained twice"),
        ({"extra_body": {"choice": []}}, "choice"),
        ({"extra_body": {"min_tokens": -1}}, "min_tokens: got -1"),
        ({"extra_body": {"min_tokens": 5}, "max_tokens": 4}, "min_tokens: got 5"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "vocabulary"),
        ({"logit_bias": {"1": 101}}, "logit"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_can_not_be_is_refused_and_harms_nobody(client: Any, fields: dict[str, Any], said: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=said):
            client.chat.completions.create(model="toy", messages=ASK, stream=stream, **fields)
    assert client.completions.create(model="toy", prompt="say", max_tokens=1).choices


def test_choices_may_have_any_characters(client: Any) -> None:
    for text in ("a\nb", "\t", "\x00", "\x7f\x1b\\"):
        found = client.completions.create(model="toy", prompt="say", max_tokens=20, extra_body={"choice": [text]})
        assert (found.choices[0].text, found.choices[0].finish_reason) == (text, "stop")


def test_a_constraint_that_can_not_go_on_is_the_clients_error(client: Any, server: Server) -> None:
    grammar = {"grammar": 'start: "ab" T\nT: /x/ & /y/'}
    with pytest.raises(openai.BadRequestError, match="position 6: the constraint can not go on"):
        client.completions.create(model="toy", prompt="say", extra_body=grammar)
    stream = client.completions.create(model="toy", prompt="say", stream=True, extra_body=grammar)
    pieces: list[str] = []
    with pytest.raises(openai.APIError, match="the constraint can not go on") as refusal:
        pieces.extend(chunk.choices[0].text for chunk in stream)
    assert "".join(pieces) == "ab"
    assert refusal.value.type == "invalid_request_error"
    with server.client() as http:
        assert http.get("/health").status_code == 200


def test_answers_have_at_least_so_many_tokens(client: Any) -> None:
    for least in (0, 5):
        asked = {"extra_body": {"min_tokens": least}, "max_tokens": 9, "temperature": 0, "logit_bias": {"257": 100}}
        whole = client.completions.create(model="toy", prompt="say", **asked)
        chat = client.chat.completions.create(model="toy", messages=ASK, **asked)
        for found in (whole, chat):
            assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (least + 1, "stop")


def test_log_probabilities_of_a_chat(client: Any) -> None:
    asked = {"model": "toy", "messages": ASK, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        one for chunk in client.chat.completions.create(**asked, stream=True) for one in (chunk.choices[0].logprobs or _None).content
    ]
    assert [one.logprob for one in streamed] == [one.logprob for one in whole]
    assert len(whole) == 6
    for one in whole:
        assert one.top_logprobs[0].logprob == one.logprob == max(top.logprob for top in one.top_logprobs)
        assert len(one.top_logprobs) == 3
        assert one.logprob <= 0


class _None:
    content: tuple[Any, ...] = ()


def test_a_text_is_scored_by_echo_with_log_probabilities(client: Any, model: Path) -> None:
    """What an evaluation of a model asks for: the log probability of each token of a text."""
    text = "the quick brown fox jumps over"
    found = client.completions.create(model="toy", prompt=text, max_tokens=1, echo=True, logprobs=1, temperature=0).choices[0].logprobs
    ids = Tokenizer(model / "tokenizer").encode(text)
    assert len(found.token_logprobs) == len(found.tokens) == len(found.top_logprobs) == len(ids) + 1
    assert found.token_logprobs[0] is None
    assert all(-50 < one <= 0 for one in found.token_logprobs[1:])
    # The same, token by token, each as the answer to what stands before it.
    for place in (3, 10, len(ids) - 1):
        bias = {str(ids[place]): 100}
        asked = {"model": "toy", "prompt": ids[:place], "max_tokens": 1, "temperature": 0, "logit_bias": bias, "logprobs": 0}
        alone = client.completions.create(**asked).choices[0].logprobs
        assert alone.token_logprobs[0] == found.token_logprobs[place]


def test_biases_and_penalties_change_what_is_chosen(client: Any) -> None:
    plain = client.completions.create(model="toy", prompt="say", max_tokens=12, temperature=0).choices[0].text
    token = json.loads(client.post("/../tokenize", body={"prompt": "z"}, cast_to=openai.BaseModel).model_dump_json())["tokens"][-1]
    forced = client.completions.create(model="toy", prompt="say", max_tokens=4, temperature=0, logit_bias={str(token): 100}).choices[0].text
    assert forced == "zzzz" != plain[:4]
    varied = client.completions.create(
        model="toy", prompt="say", max_tokens=4, temperature=0, logit_bias={str(token): 20}, presence_penalty=2.0, frequency_penalty=2.0
    )
    assert varied.choices[0].text != forced or plain != forced
