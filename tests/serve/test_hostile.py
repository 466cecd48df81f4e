"""What a hostile request once broke, for itself or for others."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.serve.conftest import Server, start
from tests.serve.test_http import chat, eventually

from tsrun.serve.rendering import alternating
from tsrun.serve.sessions import Sessions

ALIVE: dict[str, Any] = {"prompt": "x", "max_tokens": 1}
HUGE = 10**30


@pytest.mark.parametrize(
    "schema",
    ['{"const":NaN}', '{"const":"\\ud800"}', '{"type":"number","minimum":1e999}', '{"minimum":' + "9" * 400 + "}", "[" * 700 + "]" * 700],
)
def test_a_schema_that_the_library_can_not_read_ends_nobody_else(server: Server, schema: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=chat(structured_outputs={"json": schema}))
        assert answer.status_code == 400, answer.text
        assert client.post("/v1/completions", json=ALIVE).status_code == 200


@pytest.mark.parametrize("fields", [{"max_tokens": HUGE}, {"max_tokens": HUGE, "n": 5}, {"top_k": HUGE}, {"stop_token_ids": [HUGE]}])
def test_a_number_of_too_many_digits_is_refused_and_leaves_nothing(server: Server, fields: dict[str, Any]) -> None:
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=chat() | fields).status_code in (200, 400)
        eventually(lambda: client.get("/health").json() == {"status": "ok", "requests": 0})


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"\xff"}]}'),
        ("/v1/messages", b'{"max_tokens":2,"messages":[{"role":"user","content":"x"}],"metadata":{"user_id":"' + b"[" * 100_000 + b'"}}'),
        ("/v1/responses", b'{"max_output_tokens":2,"input":[{"type":"reasoning","content":5},{"role":"user","content":"x"}]}'),
    ],
)
def test_odd_bytes_and_shapes_are_no_error_of_ours(server: Server, path: str, data: bytes) -> None:
    with server.client() as client:
        assert client.post(path, content=data).status_code in (200, 400)


def test_one_key_can_not_change_what_anothers_prompt_becomes(model: Path) -> None:
    server = start(model, "--api-key", "a", "--api-key", "b")
    mine, other = ({"authorization": f"Bearer {key}"} for key in "ab")
    body = chat("a conversation that is long enough to be kept under its text, and found again by the next turn of its own session")

    def tokens() -> int:
        with server.client() as client:
            return int(client.post("/v1/chat/completions", json=body, headers=mine).json()["usage"]["prompt_tokens"])

    try:
        first = tokens()
        hidden = {"257": 100}  # eos, which no text shows
        with server.client() as client:
            prompt = f"<bos>[user] {body['messages'][0]['content']}\n> "  # type: ignore[index]
            asked = {"prompt": prompt, "max_tokens": 16, "ignore_eos": True, "temperature": 0, "logit_bias": hidden}
            client.post("/v1/completions", json=asked, headers=other)
            client.post("/v1/chat/completions", json=body | {"logit_bias": hidden, "max_tokens": 16}, headers=other)
            client.post("/v1/chat/completions", json=body | {"logit_bias": hidden, "max_tokens": 16}, headers=mine)
        assert tokens() == first
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/tokenize"])
def test_more_messages_than_can_fit_are_refused_at_once(server: Server, path: str) -> None:
    messages = [{"role": "user", "content": "x"}] * 300_000
    data = json.dumps({"input" if path == "/v1/responses" else "messages": messages, "max_tokens": 1}).encode()
    with server.client() as client:
        began = time.monotonic()
        answer = client.post(path, content=data)
        assert (answer.status_code, "maximum context length is 4096" in answer.text) == (400, True), answer.text
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/chat/completions", "messages"), ("/tokenize", "prompt")])
def test_a_text_that_can_not_fit_is_not_tokenized(server: Server, path: str, field: str) -> None:
    text = "x" * (30 * 2**20)
    with server.client() as client:
        began = time.monotonic()
        answer = client.post(path, json={field: [{"role": "user", "content": text}] if field == "messages" else text})
        assert (answer.status_code, answer.json()["error"].get("code", "context_length_exceeded")) == (400, "context_length_exceeded")
        assert time.monotonic() - began < 10


def test_turns_of_one_role_are_joined_in_a_moment() -> None:
    messages = [{"role": "user", "content": "x" * 100}] * 50_000
    began = time.monotonic()
    joined = alternating(messages)
    assert (len(joined), len(joined[0]["content"])) == (1, 50_000 * 102 - 2)
    assert time.monotonic() - began < 5


def test_large_keys_of_sessions_and_metadata_take_no_room(server: Server) -> None:
    large = "k" * 2**20
    with server.client() as client:
        for fields in ({"session_id": large}, {"prompt_cache_key": large}, {"metadata": {"user_id": large}}):
            assert client.post("/v1/chat/completions", json=chat() | fields).status_code == 200
        assert client.get("/v1/models", headers={"x-session-id": "k" * 20_000}).status_code in (200, 400, 431)
    sessions = Sessions()
    sessions.note(large, "text", 1, goes_on=False)
    assert len(pickle.dumps(sessions)) < 1000


def test_half_a_question_does_not_hold_the_end(model: Path) -> None:
    server = start(model, "--drain-seconds", "1")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        time.sleep(0.2)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 30


def test_an_end_while_the_engine_loads_leaves_no_process(model: Path) -> None:
    command = [sys.executable, "-m", "tsrun", "serve", str(model), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    found: list[str] = []
    while not found and process.poll() is None:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout.split()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: not Path(f"/proc/{found[0]}").exists(), 60)


def test_an_empty_key_is_refused(model: Path) -> None:
    command = [sys.executable, "-m", "tsrun", "serve", str(model), "--api-key", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "an empty key" in done.stderr) == (2, True)
