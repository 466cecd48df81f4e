"""Chat completions and completions, by OpenAI's own client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.runtime.toy import Toy
from tests.serve.conftest import Server

from tsrun.tokenizer import Tokenizer


@pytest.fixture
def client(server: Server) -> Any:  # their types want more than a test has to say
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: Any, text: str, **more: object) -> object:
    return client.chat.completions.create(model="toy", messages=[{"role": "user", "content": text}], **more)


def test_the_answer_is_the_models(client: Any, model: Path) -> None:
    found = client.completions.create(model="toy", prompt="once upon", max_tokens=12, temperature=0)
    tokenizer = Tokenizer(model / "tokenizer")
    prompt = tokenizer.encode("once upon")
    assert found.choices[0].text == tokenizer.decode([*prompt, *Toy(context=4096).greedy(prompt, 12)])[len("once upon") :]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), 12)


def test_stream_and_whole_give_the_same(client: Any) -> None:
    whole = client.chat.completions.create(model="toy", messages=[{"role": "user", "content": "hello"}], max_tokens=20, temperature=0)
    stream = client.chat.completions.create(
        model="toy",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason] == ["length"]
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 20)


def test_a_later_turn_finds_the_turn_before_in_the_cache(client: Any) -> None:
    messages = [{"role": "user", "content": "tell me of a rather long afternoon in the city of glass and of rain"}]
    first = client.chat.completions.create(model="toy", messages=messages, max_tokens=40, temperature=0)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "and then?"}]
    second = client.chat.completions.create(model="toy", messages=messages, max_tokens=4, temperature=0)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens - 16 < cached < second.usage.prompt_tokens


def test_seeds_repeat_and_choices_differ(client: Any) -> None:
    def texts() -> list[str]:
        found = client.completions.create(model="toy", prompt="x", max_tokens=16, temperature=1.5, seed=11, n=3)
        assert [choice.index for choice in found.choices] == [0, 1, 2]
        return [choice.text for choice in found.choices]

    once = texts()
    assert once == texts()
    assert len(set(once)) == 3


def test_stop_strings_end_an_answer_and_are_not_shown(client: Any) -> None:
    whole = client.completions.create(model="toy", prompt="stop", max_tokens=30, temperature=0).choices[0].text
    stop = whole[8:10]
    found = client.completions.create(model="toy", prompt="stop", max_tokens=30, temperature=0, stop=[stop]).choices[0]
    assert found.text == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"


def test_several_prompts_and_token_prompts(client: Any, model: Path) -> None:
    texts = client.completions.create(model="toy", prompt=["one", "two"], max_tokens=5, temperature=0, echo=True).choices
    tokenizer = Tokenizer(model / "tokenizer")
    ids = [tokenizer.encode(text) for text in ("one", "two")]
    tokens = client.completions.create(model="toy", prompt=ids, max_tokens=5, temperature=0).choices
    assert [f"{name}{choice.text}" for name, choice in zip(("one", "two"), tokens, strict=True)] == [choice.text for choice in texts]


def test_async_streams_at_once(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": f"number {number % 4}"}], max_tokens=24, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, number) for number in range(24)))

    texts = asyncio.run(run())
    assert texts == texts[:4] * 6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n:"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"extra_body": {"priority": 9}}, "priority"),
        ({"extra_body": {"deadline_seconds": 0}}, "deadline_seconds"),
    ],
)
def test_a_field_that_can_not_be_is_refused_by_name(client: Any, fields: dict[str, object], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said.replace("[", r"\[")):
        ask(client, "x", **{"max_tokens": 2, **fields})


def test_a_long_prompt_is_refused_in_openais_words(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "x" * 5000)
    assert caught.value.code == "context_length_exceeded"
    assert "This model's maximum context length is 4096 tokens. However, your messages resulted in" in str(caught.value)
