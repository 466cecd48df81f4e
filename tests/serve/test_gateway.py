"""The real SMG gateway in front of one worker, and of two. A constraint says what the model writes; all else is real."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from tests.runtime.toy import Toy, write_artifact, write_manifest
from tests.serve.conftest import Server, start
from tests.serve.gateway import Gateway, gateway
from tests.serve.test_http import eventually, metric
from tests.serve.test_tools import ARGUMENTS, ASK, TEXT

from tsc.artifact import split_tokenizer

if find_spec("smg") is None or find_spec("smg_grpc_proto") is None:
    pytest.skip("the package `smg` is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rom", "Oslo"]}}, "required": ["city"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
WORKER = ("--grpc", "--metrics-port", "0")


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer is stored as a compiler stores a large one: no gateway could read the files."""
    toy = Toy(context=4096)
    path = write_artifact(toy, tmp_path_factory.mktemp("gateway") / "toy.tsa")
    folder = path / "tokenizer"
    for name, data in split_tokenizer({file.name: file.read_bytes() for file in folder.iterdir()}).items():
        (folder / name).write_bytes(data)
    assert (folder / "vocabulary.safetensors").is_file()
    write_manifest(toy, path)
    return path


@pytest.fixture(scope="module")
def worker(split_model: Path) -> Iterator[Server]:
    running = start(split_model, *WORKER)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def front(worker: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway([worker], tmp_path_factory.mktemp("smg"), "--tool-call-parser", "qwen") as running:
        yield running


@pytest.fixture
def client(front: Gateway) -> Any:
    return openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0)


def written(text: str) -> dict[str, Any]:
    return {"extra_body": {"regex": re.sub(r"([\\.(){}\[\]*+?|^$])", r"\\\1", text)}}


def test_the_tokenizer_is_the_workers(front: Gateway) -> None:
    assert "Fetching tokenizer from worker" in front.log.read_text(errors="replace")


def test_a_chat_goes_on_through_the_gateway(client: Any) -> None:
    messages: list[Any] = [*ASK]
    for turn in range(3):
        answer = client.chat.completions.create(model="toy", messages=messages, **written(f"It is turn {turn}, and the sun shines."))
        assert answer.choices[0].message.content == f"It is turn {turn}, and the sun shines."
        assert answer.choices[0].finish_reason == "stop"
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert (cached > 0) == (turn > 0)
        messages += [{"role": "assistant", "content": answer.choices[0].message.content}, {"role": "user", "content": "and then?"}]


def test_calls_of_a_chat_come_streamed_as_they_come_whole(client: Any) -> None:
    whole = client.chat.completions.create(model="toy", messages=ASK, tools=[TOOL], **written(TEXT)).choices[0]
    assert (whole.finish_reason, whole.message.content.strip()) == ("tool_calls", "Let me see.")
    assert [json.loads(call.function.arguments) for call in whole.message.tool_calls] == ARGUMENTS
    calls: dict[int, list[str]] = {}
    text, reasons = "", []
    for chunk in client.chat.completions.create(model="toy", messages=ASK, tools=[TOOL], stream=True, **written(TEXT)):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or ():
                calls.setdefault(call.index, []).append(call.function.arguments or "")
    assert (text.strip(), reasons) == ("Let me see.", ["tool_calls"])
    assert [json.loads("".join(pieces)) for pieces in calls.values()] == ARGUMENTS
    assert all(len(pieces) > 4 for pieces in calls.values()), "arguments come in pieces"


def test_a_required_call_is_one(client: Any) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = client.chat.completions.create(model="toy", messages=ASK, tools=[TOOL], tool_choice=choice, temperature=0).choices[0]
        (call,) = found.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)["city"] in ("Rom", "Oslo")) == ("weather", True)


def test_completions_have_what_the_engine_has(client: Any) -> None:
    def complete(**more: Any) -> Any:
        return client.completions.create(model="toy", prompt="hello", **{"max_tokens": 12, **more})

    assert complete(**written("sun and rain")).choices[0].text == "sun and rain"
    stopped = complete(stop=["and"], **written("sun and rain")).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("sun ", "stop")
    assert complete(extra_body={"ebnf": 'root ::= "yes" "!"'}).choices[0].text == "yes!"
    first, second = complete(n=2, seed=3, extra_body={"regex": "[a-z]{8}"}).choices
    assert first.text != second.text
    assert complete(seed=3, extra_body={"regex": "[a-z]{8}"}).choices[0].text == first.text
    pieces = [chunk.choices[0].text for chunk in complete(stream=True, **written("sun and rain")) if chunk.choices]
    assert ("".join(pieces), len(pieces) > 4) == ("sun and rain", True)


def test_log_probabilities_of_a_chat(client: Any) -> None:
    answer = client.chat.completions.create(model="toy", messages=ASK, logprobs=True, top_logprobs=2, **written("abcd")).choices[0]
    assert "".join(one.token for one in answer.logprobs.content) == "abcd"
    for one in answer.logprobs.content:
        assert len(one.top_logprobs) == 2
        assert 0 > one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob


def test_responses_have_calls_as_items(client: Any) -> None:
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA}
    asked: dict[str, Any] = {"model": "toy", "input": "weather?", "tools": [tool], "tool_choice": "required", "temperature": 0}
    (call,) = client.responses.create(**asked).output
    assert (call.type, call.name, json.loads(call.arguments)["city"] in ("Rom", "Oslo")) == ("function_call", "weather", True)
    events = list(client.responses.create(stream=True, **asked))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 4
    assert json.loads("".join(deltas)) == json.loads(call.arguments)
    assert events[-1].type == "response.completed"


def test_messages_have_calls_as_blocks(front: Gateway) -> None:
    claude: Any = anthropic.Anthropic(base_url=front.url, api_key="none", max_retries=0)
    asked: dict[str, Any] = {
        "model": "toy",
        "max_tokens": 900,
        "messages": ASK,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "weather"},
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**asked)
    assert ([block.type for block in whole.content], whole.stop_reason) == (["tool_use"], "tool_use")
    with claude.messages.stream(**asked) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        last = stream.get_final_message()
    assert last.content[0].input == whole.content[0].input == json.loads("".join(pieces))
    assert len(pieces) > 4


def test_what_the_engine_refuses_is_the_clients_error(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r'regex: .*invalid regex \\?"\[a'):
        client.completions.create(model="toy", prompt="hello", extra_body={"regex": "[a"})


def test_a_client_that_goes_gives_its_pages_back(front: Gateway, worker: Server) -> None:
    body = {"model": "toy", "messages": ASK, "max_completion_tokens": 3000, "stream": True, "ignore_eos": True}
    with front.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        eventually(lambda: metric(worker, "vllm:num_requests_running") == 1)
    eventually(lambda: metric(worker, "vllm:num_requests_running") == 0)
    eventually(lambda: metric(worker, "vllm:kv_cache_usage_perc") == 0)
    with httpx.Client(base_url=front.url, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json={**body, "stream": False})
    eventually(lambda: metric(worker, "vllm:num_requests_running") == 0)
    assert metric(worker, "vllm:kv_cache_usage_perc") == 0


SESSIONS, TURNS = 8, 4


class Session:
    """A conversation, and of each of its turns the tokens of the prompt and, of these, those that were cached."""

    def __init__(self, number: int) -> None:
        self.messages: list[Any] = [{"role": "system", "content": f"Session {number}. " + f"{number} is the number. " * 20}]
        self.counts: list[tuple[int, int]] = []

    def turn(self, front: Gateway) -> None:
        client: Any = openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0)
        self.messages.append({"role": "user", "content": f"turn {len(self.counts)}"})
        usage = client.chat.completions.create(model="toy", messages=self.messages, **written("a" * 30)).usage
        self.counts.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
        self.messages.append({"role": "assistant", "content": "a" * 30})


def test_a_session_stays_with_the_worker_that_has_its_pages(model: Path, tmp_path: Path) -> None:
    """One gateway gives each worker every second session; another, which has seen none of it, knows the pages from the workers."""
    workers = [start(model, *WORKER) for _ in range(2)]
    sessions = [Session(number) for number in range(SESSIONS)]
    try:
        with gateway(workers, tmp_path, "--policy", "round_robin") as front:
            for session in sessions:
                session.turn(front)
        with gateway(workers, tmp_path, "--policy", "cache_aware") as front, ThreadPoolExecutor(SESSIONS) as threads:
            eventually(lambda: front.log.read_text(errors="replace").count("KV event stream connected") == 2)
            time.sleep(0.5)  # what the workers have is on its way
            for _ in range(TURNS):
                list(threads.map(lambda session: session.turn(front), sessions))
        for session in sessions:
            for (before, _), (_, cached) in pairwise(session.counts):
                assert cached >= before // 16 * 16, "what the turn before had is found"
        asked = [metric(worker, "vllm:prefix_cache_queries_total") for worker in workers]
        hits = [metric(worker, "vllm:prefix_cache_hits_total") for worker in workers]
        print(f"prompt tokens of the workers {asked}, found in their caches {hits}: {sum(hits) / sum(asked):.1%}")
        assert asked[0] == asked[1], "each has half of the sessions"
    finally:
        assert [worker.stop() for worker in workers] == [0, 0]
