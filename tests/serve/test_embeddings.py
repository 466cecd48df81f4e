"""`/v1/embeddings` with OpenAI's client and without, and what a model that gives embeddings answers elsewhere."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from tests.e2e.conftest import write_checkpoint
from tests.runtime.toy import BOS, Toy, byte_tokenizer, write_artifact
from tests.serve.conftest import Server, start
from tests.serve.test_http import eventually, metric
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers.models.auto.modeling_auto import AutoModel

TEXTS = ["hello", "another text that is longer than the first", "Köln"]


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy(context=4096, embeds=True)


@pytest.fixture
def client(embedding_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedding_server.url}/v1", api_key="none", max_retries=0)


def tokens(text: str) -> list[int]:
    return [BOS, *byte_tokenizer().encode(text).ids]


def expected(toy: Toy, text: str, dimensions: int | None = None) -> NDArray[np.float32]:
    row = toy.hidden(tokens(text))[-1].numpy()[:dimensions]
    return np.asarray(row / np.linalg.norm(row), dtype=np.float32)


def post(server: Server, path: str = "/v1/embeddings", **body: object) -> httpx.Response:
    with server.client() as client:
        return client.post(path, json=body)


def vectors(answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    return [each["embedding"] for each in answer.json()["data"]]


def assert_near(found: list[list[float]], expected: list[list[float]]) -> None:
    """The toy's products are torch's, which round otherwise in steps of other sizes."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_openais_client_gets_vectors_in_the_order_of_the_texts(toy: Toy, client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="toy", input=TEXTS)  # in base64, which it asks for by itself
    assert (found.object, found.model, [each.index for each in found.data]) == ("list", "toy", [0, 1, 2])
    used = sum(1 + len(text.encode()) for text in TEXTS)
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (used, used)
    for text, each in zip(TEXTS, found.data, strict=True):
        np.testing.assert_allclose(each.embedding, expected(toy, text), atol=1e-5)
    floats = client.embeddings.create(model="toy", input=TEXTS, encoding_format="float")
    one = client.embeddings.create(model="toy", input=TEXTS[1])
    assert_near([each.embedding for each in (*floats.data, *one.data)], [each.embedding for each in (*found.data, found.data[1])])


def test_base64_is_of_little_endian_f32(embedding_server: Server) -> None:
    (text,) = vectors(post(embedding_server, input="hello", encoding_format="base64"))
    (floats,) = vectors(post(embedding_server, input="hello"))
    assert_near([np.frombuffer(base64.b64decode(str(text)), dtype="<f4").tolist()], [floats])


def test_tokens_are_as_good_as_their_text(embedding_server: Server) -> None:
    with embedding_server.client() as client:
        ids = client.post("/tokenize", json={"prompt": "hello"}).json()["tokens"]
    both = vectors(post(embedding_server, input=["hello", "x"]))
    assert_near(vectors(post(embedding_server, input=ids)), both[:1])
    assert_near(vectors(post(embedding_server, input=[ids, tokens("x")])), both)


def test_fewer_dimensions_are_the_first_ones_at_length_1(toy: Toy, client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="toy", input="hello", dimensions=5).data[0].embedding
    np.testing.assert_allclose(found, expected(toy, "hello", 5), atol=1e-5)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions: got 33; give 1 to 32"):
        client.embeddings.create(model="toy", input="hello", dimensions=33)


def test_many_inputs_run_as_one_batch(embedding_server: Server) -> None:
    texts = [f"text number {n}" * (1 + n % 7) for n in range(300)]
    found = vectors(post(embedding_server, input=texts))
    assert_near(found[::60], [vectors(post(embedding_server, input=text))[0] for text in texts[::60]])
    before = metric(embedding_server, "tsrun:steps_total")
    post(embedding_server, input=[f"again {n}" for n in range(200)])
    eventually(lambda: metric(embedding_server, "vllm:num_requests_running") == 0)
    assert metric(embedding_server, "tsrun:steps_total") - before < 50


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": ""}, "input", "a text is empty"),
        ({"input": ["x", ""]}, "input", "a text is empty"),
        ({"input": []}, "input", "give a text"),
        ({"input": [[]]}, "input", "give a text"),
        ({"input": [1, "x"]}, "input", "give a text"),
        ({"input": {"text": "x"}}, "input", "give a text"),
        ({"input": None}, "input", "give a text"),
        ({}, None, "input"),
        ({"input": [4, 999]}, "input", "vocabulary of 260"),
        ({"input": ["x"] * 2049}, "input", "at most 2048"),
        ({"input": ["x"] * 2049}, "input", "an array of at most 2048"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "give float or base64"),
        ({"input": "x", "dimensions": 0}, "dimensions", "give 1 to 32"),
        ({"input": "x", "priority": 8}, "priority", "give 0"),
        ({"input": "x", "deadline_seconds": -1}, "deadline_seconds", "give a positive number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_not_be_is_refused_by_name(embedding_server: Server, body: dict[str, Any], param: str | None, said: str) -> None:
    answer = post(embedding_server, **body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert said in error["message"]
    assert param is None or error["param"] == param


def test_an_input_may_be_as_long_as_the_context_and_no_longer(embedding_server: Server, client: openai.OpenAI) -> None:
    assert len(vectors(post(embedding_server, input=[7] * 4096))[0]) == 32
    with pytest.raises(
        openai.BadRequestError, match=r"maximum context length is 4096 tokens\. However, your input resulted in 4097"
    ) as found:
        client.embeddings.create(model="toy", input=["x", "y" * 4096])
    assert found.value.code == "context_length_exceeded"


def test_a_deadline_that_passes_is_said(embedding_server: Server) -> None:
    answer = post(embedding_server, input=["x" * 4000] * 8, deadline_seconds=1e-6)
    assert (answer.status_code, "deadline" in answer.text) == (504, True)


def test_a_client_that_goes_gives_its_pages_back(embedding_server: Server) -> None:
    eventually(lambda: metric(embedding_server, "vllm:kv_cache_usage_perc") == 0)
    many = [[n % 250, *range(200)] * 20 for n in range(64)]
    with httpx.Client(base_url=embedding_server.url, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"input": many})
    eventually(lambda: metric(embedding_server, "vllm:num_requests_running") == 0)
    eventually(lambda: metric(embedding_server, "vllm:kv_cache_usage_perc") == 0)
    assert len(vectors(post(embedding_server, input="x"))) == 1


def test_a_model_that_gives_embeddings_says_so_to_who_wants_tokens(embedding_server: Server) -> None:
    asked: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"prompt": "x"},
        "/v1/responses": {"input": "x"},
        "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    }
    for path, body in asked.items():
        for stream in (False, True):
            answer = post(embedding_server, path, **body, stream=stream)
            assert answer.status_code == 400, path
            assert "the model gives embeddings, and no tokens" in answer.json()["error"]["message"]
    with embedding_server.client() as client:
        for path in ("/v1/models", "/status", "/metrics", "/", "/docs", "/openapi.json", "/health", "/ready"):
            assert client.get(path).status_code == 200, path
        assert client.post("/v1/messages/count_tokens", json=asked["/v1/messages"]).json()["input_tokens"] > 1
        assert client.post("/detokenize", json={"tokens": tokens("hi")[1:]}).json() == {"prompt": "hi"}


def test_a_model_that_gives_tokens_says_how_to_get_embeddings(server: Server) -> None:
    answer = post(server, input="x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_supported")
    assert "`tsc compile CHECKPOINT --entry embed`" in answer.json()["error"]["message"]


def test_keys_find_only_their_own_prompts(toy: Toy, tmp_path: Path) -> None:
    """And the inputs of a request count as one, wherever the limit of a key is."""
    options = ("--api-key", "one", "--api-key", "two", "--max-requests-per-key", "1")
    server = start(write_artifact(toy, tmp_path / "toy.tsa"), *options)
    try:
        with server.client() as client:

            def ask(key: str, *texts: str) -> int:
                answer = client.post("/v1/embeddings", json={"input": texts}, headers={"authorization": f"Bearer {key}"})
                return answer.status_code

            def hits() -> float:
                text = client.get("/metrics", headers={"authorization": "Bearer one"}).text
                return float(text.split('vllm:prefix_cache_hits_total{model_name="toy"} ')[1].split()[0])

            prompt = "a text that is long enough to fill more than a page of the cache"
            assert [ask("one", prompt), hits(), ask("two", prompt), hits(), ask("one", prompt), hits() > 0] == [200, 0, 200, 0, 200, True]
            assert [ask("one", *["x"] * 2048), ask("one", *"abcd")] == [200, 200]
            assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 401
    finally:
        assert server.stop() == 0


def test_a_checkpoint_is_compiled_for_embeddings_and_served_by_two_ranks(tmp_path: Path) -> None:
    """Whose tokenizer ends a text, as that of Qwen3-Embedding does, though its config adds nothing."""
    checkpoint = write_checkpoint(tmp_path / "tiny")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|end|>"])
    end = tokenizer.token_to_id("<|end|>")
    tokenizer.post_processor = TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", end)])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "eos_token": "<|end|>"}))
    options = ("--entry", "embed", "--mesh", "tp=2", "--dtype", "f32")
    server = start(checkpoint, *options, TSC_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
    try:
        texts = ["the quick brown fox", "jumps", "over the lazy dog " * 9]
        found = vectors(post(server, input=texts))
        with server.client() as client:
            ids = [client.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    finally:
        assert server.stop() == 0
    assert ids == [tokenizer.encode(text).ids for text in texts]
    assert all(one[-1] == end for one in ids)
    model = AutoModel.from_pretrained(checkpoint, attn_implementation="eager", dtype=torch.float32)
    for one, vector in zip(ids, found, strict=True):
        with torch.inference_mode():
            row = model(torch.tensor([one])).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(row, dim=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--grpc"], "--grpc: the gateway's protocol has no embeddings"),
        (["--entry", "embed"], "--entry: an artifact has its entry already"),
    ],
)
def test_what_can_not_be_served_is_refused_in_one_line(toy: Toy, tmp_path: Path, options: list[str], said: str) -> None:
    path = write_artifact(toy, tmp_path / "toy.tsa")
    ended = subprocess.run([sys.executable, "-m", "tsrun", "serve", str(path), *options], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert said in ended.stderr


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(embedding_server: Server) -> Iterator[None]:
    yield
    assert metric(embedding_server, "vllm:num_requests_running") == metric(embedding_server, "vllm:num_requests_waiting") == 0
