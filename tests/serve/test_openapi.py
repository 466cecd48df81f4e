"""The document of the API: valid, and every field in it does what it says or is refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from tests.serve.conftest import Server

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [66]},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
VALUES: dict[str, list[Any]] = {
    "messages": [[{"role": "user", "content": [{"type": "text", "text": "y"}]}]],
    "prompt": ["y", ["y", "z"], [66, 67]],
    "input": ["y", [{"role": "user", "content": "y"}]],
    "tokens": [[66, 67]],
    "model": ["anything"],
    "temperature": [0, 1.5],
    "top_p": [0.5, 1],
    "top_k": [-1, 0, 5],
    "min_p": [0.1],
    "seed": [-1, 7, 2**63],
    "stop": ["q", ["q", "r"]],
    "stop_sequences": [["q"]],
    "presence_penalty": [1.0],
    "frequency_penalty": [-1.0],
    "repetition_penalty": [1.2],
    "logit_bias": [{"66": 5}],
    "ignore_eos": [True],
    "stream": [False],
    "stream_options": [{"include_usage": True}],
    "n": [2],
    "user": ["u"],
    "priority": [0, 7],
    "cache_salt": ["s"],
    "prompt_cache_key": ["k"],
    "session_id": ["k"],
    "deadline_seconds": [100.0],
    "stop_token_ids": [[5]],
    "min_tokens": [0, 1],
    "prompt_logprobs": [0, 2],
    "logprobs": [True, 3],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "regex": ["[ab]"],
    "grammar": ['start: "x"'],
    "choice": [["a", "b"]],
    "structured_outputs": [{"regex": "[ab]"}],
    "guided_json": [{"type": "boolean"}],
    "guided_regex": ["[ab]"],
    "guided_choice": [["a"]],
    "guided_grammar": ['start: "x"'],
    "max_tokens": [1],
    "max_completion_tokens": [1],
    "max_output_tokens": [1],
    "tools": [[TOOL], [{"type": "web_search"}], [{"name": "f", "input_schema": {"type": "object"}}], [{"type": "function", "name": "f"}]],
    "tool_choice": ["auto", "none", {"type": "auto"}, {"type": "none"}],
    "parallel_tool_calls": [True],
    "reasoning_effort": ["low"],
    "reasoning": [{"effort": "low"}],
    "chat_template_kwargs": [{"a": 1}],
    "modalities": [["text"]],
    "best_of": [1],
    "echo": [True],
    "add_generation_prompt": [False],
    "suffix": [""],
    "system": ["s", [{"type": "text", "text": "s"}]],
    "thinking": [{"type": "disabled"}],
    "metadata": [{"user_id": "u"}],
    "output_config": [{"effort": "low"}],
    "instructions": ["i"],
    "text": [{"format": {"type": "text"}}],
    "store": [False],
    "truncation": ["disabled"],
    "add_special_tokens": [False],
    "encoding_format": ["float", "base64"],
    "dimensions": [1, 32],
}
REFUSED: dict[str, Any] = {  # known, and not done
    "audio": {"voice": "x"},
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "continue_final_message": True,
    "previous_response_id": "resp_none",
    "conversation": "c",
    "background": True,
    "top_logprobs": 50,
}


def document(server: Server) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
        return found


def test_the_document_is_valid_and_names_every_path(server: Server) -> None:
    found = document(server)
    validate(found)
    posted = {path for path, operations in found["paths"].items() if "post" in operations}
    assert posted == set(BODIES)
    with server.client() as client:
        page = client.get("/docs").text
        assert all(path in page for path in found["paths"])
        for path in (path for path, operations in found["paths"].items() if "get" in operations and "{" not in path):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize("path", list(BODIES))
def test_every_field_is_done_or_refused_by_name(server: Server, embedding_server: Server, path: str) -> None:
    server = embedding_server if path == "/v1/embeddings" else server
    found = document(server)
    name = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    fields = found["components"]["schemas"][name]["properties"]
    with server.client() as client:

        def ask(field: str, value: Any) -> httpx.Response:
            body = (
                BODIES[path]
                if field not in ("messages", "prompt")
                else {k: v for k, v in BODIES[path].items() if k not in ("messages", "prompt")}
            )
            return client.post(path, json={**body, field: value})

        for field in fields:
            assert field in VALUES or field in REFUSED, f"{field} has no test"
            assert ask(field, None).status_code == 200 or field in BODIES[path] or field == "messages", field
            if field in REFUSED:
                answer = ask(field, REFUSED[field])
                assert answer.status_code in (400, 404), field
                assert field in answer.text or field in json.dumps(answer.json()), field
                continue
            answers = [ask(field, value) for value in VALUES[field]]
            assert any(answer.status_code == 200 for answer in answers), (field, [answer.text for answer in answers])
            for answer in answers:
                assert answer.status_code == 200 or field in answer.text, (field, answer.text)
