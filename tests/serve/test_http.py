"""What holds for every API: who may ask, what is ignored, what happens when a client goes or the server is told to end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.serve.conftest import Server, start

from tsrun.serve.http_listener import listen_at

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/tokenize",
    "/metrics",
    "/v1/models",
    "/version",
    "/status",
]
LONG = {"prompt": "x", "max_tokens": 2000, "stream": True, "ignore_eos": True}


def metric(server: Server, name: str) -> float:
    with server.client() as client:
        found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def eventually(fact: object, seconds: float = 10.0) -> None:
    """Wait until a callable gives True."""
    ends = time.monotonic() + seconds
    while not fact():  # type: ignore[operator]
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def chat(text: str = "hello", **more: object) -> dict[str, object]:
    return {"model": "toy", "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}


def test_tokens_that_were_drafted_are_counted(server: Server) -> None:
    """Of an answer that was given before."""
    names = [f"vllm:spec_decode_num_{what}_total" for what in ("drafts", "draft_tokens", "accepted_tokens")]
    with server.client() as client:

        def details() -> dict[str, int]:
            answer = client.post("/v1/chat/completions", json=chat("say it again", max_tokens=60)).json()
            assert answer["usage"]["completion_tokens"] == 60
            return dict(answer["usage"]["completion_tokens_details"])

        details()
        for _ in range(20):  # it may not pay at once where the machine has much else to do
            before = [metric(server, name) for name in names]
            found = details()
            expected = before[2] + found["accepted_prediction_tokens"]
            eventually(lambda expected=expected: metric(server, names[2]) == expected)
            if found["accepted_prediction_tokens"]:
                break
        assert found["accepted_prediction_tokens"] > 0
        assert metric(server, names[1]) - before[1] == sum(found[f"{what}_prediction_tokens"] for what in ("accepted", "rejected"))
        assert metric(server, names[0]) > before[0]


def test_without_a_key_nothing_but_probes_is_answered(model: Path) -> None:
    server = start(model, "--api-key", "secret", "--api-key", "other")
    try:
        with server.client() as client:
            for path in [*PATHS, "//v1/models", "/v1/../metrics", "/health/../metrics", "/ready/", "/nothing"]:
                for method in ("GET", "POST"):
                    assert client.request(method, path).status_code == 401, path
            wrong = client.post("/v1/chat/completions", json=chat(), headers={"authorization": "Bearer secre"})
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
            assert client.get("/health").status_code == client.get("/ready").status_code == 200
            for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "other"}):
                assert client.post("/v1/chat/completions", json=chat(), headers=headers).status_code == 200

            def cached(key: str) -> int:
                body = chat("a prompt that is long enough to fill more than a page of the cache, twice over")
                answer = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}).json()
                return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

            assert (cached("secret"), cached("other"), cached("secret") > 0, cached("other") > 0) == (0, 0, True, True)
    finally:
        assert server.stop() == 0


def test_unknown_fields_are_ignored_counted_and_warned_of_once(server: Server) -> None:
    body = chat(client_metadata={"a": [1, {"b": None}]}, tools=[{"type": "web_search"}, {"type": "namespace", "tools": []}])
    with server.client() as client:
        for _ in range(2):
            assert client.post("/v1/chat/completions?beta=true", json=body).status_code == 200
        assert 'tsrun:unknown_fields_total{field="client_metadata",model_name="toy"} 2.0' in client.get("/metrics").text
    eventually(lambda: any("client_metadata" in line for line in server.lines))
    assert sum("client_metadata" in line for line in server.lines) == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "is not JSON"),
        (b"[]", "an array, not a JSON object"),
        (b'{"messages": 3}', "messages: Expected `array`"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "image_url"),
        (b'{"messages": [], "max_tokens": "x"}', "max_tokens: Expected `int"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', ""),
    ],
)
def test_a_body_that_can_not_be_is_refused_in_one_line(server: Server, data: bytes, said: str) -> None:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", content=data)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert said in message
        assert "\n" not in message
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


def test_what_is_too_large_is_refused(server: Server) -> None:
    with server.client() as client:
        assert client.post("/v1/completions", content=b" " * (33 * 2**20)).status_code == 413
        assert client.get("/v1/nothing").status_code == 404
        assert client.get("/v1/completions").status_code == 405


def test_a_client_that_goes_gives_its_pages_back(server: Server) -> None:
    eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=3000)) as stream:
        lines = stream.iter_lines()  # held: a client that drops them closes the stream
        next(lines)
        eventually(lambda: metric(server, "vllm:num_requests_running") == 1)
    eventually(lambda: metric(server, "vllm:num_requests_running") == 0)
    eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)
    with httpx.Client(base_url=server.url, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=chat(max_tokens=3900))
    eventually(lambda: metric(server, "vllm:num_requests_running") == 0)


@pytest.mark.slow
def test_requests_that_are_broken_off_anywhere_leave_nothing(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(chat("broken off", stream=True, max_tokens=200)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    whole = head + body

    def one(number: int) -> None:
        with socket.create_connection((host, int(port))) as connection:
            if number % 4 == 0:  # not even asked to the end
                connection.sendall(whole[: 40 + number * 7 % (len(whole) - 40)])
                return
            connection.sendall(whole)
            for _ in range(number % 5):
                connection.recv(256)

    for first in range(0, 1000, 50):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(first, first + 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    eventually(lambda: metric(server, "vllm:num_requests_running") == metric(server, "vllm:num_requests_waiting") == 0, 30)
    eventually(lambda: metric(server, "vllm:kv_cache_usage_perc") == 0)
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok", "requests": 0}


def test_who_asks_for_too_much_is_told_to_come_again(model: Path) -> None:
    limits = ("--max-sequences", "1", "--max-waiting", "2", "--max-requests-per-key", "2")
    server = start(model, *limits, "--api-key", "a", "--api-key", "b")
    keys = [{"authorization": f"Bearer {key}"} for key in "ab"]
    body = chat(stream=True, max_tokens=3000)  # which begins to be answered when it is accepted
    with server.client() as client:
        held = [client.stream("POST", "/v1/chat/completions", json=body, headers=keys[0]) for _ in range(2)]
        held.append(client.stream("POST", "/v1/chat/completions", json=body, headers=keys[1]))
        for one in held:
            one.__enter__()
        refused = client.post("/v1/completions", json={"prompt": "x"}, headers=keys[0])
        assert (refused.status_code, refused.json()["error"]["code"], "retry-after" in refused.headers) == (
            429,
            "rate_limit_exceeded",
            True,
        )
        assert client.post("/v1/completions", json={"prompt": "x"}, headers=keys[1]).status_code == 503
        many = client.post("/v1/completions", json={"prompt": "x", "n": 3}, headers=keys[1])
        assert (many.status_code, "ask for fewer" in many.json()["error"]["message"]) == (400, True), "there will never be room for it"
        for one in held:
            one.__exit__(None, None, None)
        eventually(lambda: client.post("/v1/completions", json={"prompt": "x", "n": 2}, headers=keys[0]).status_code == 200)
    assert server.stop() == 0


def test_what_still_runs_after_the_drain_is_told_so(model: Path) -> None:
    server = start(model, "--drain-seconds", "0.2")
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=chat(stream=True, max_tokens=3000)) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        told = [line for line in lines if line]
    assert json.loads(told[-1].removeprefix("data: "))["error"]["message"].startswith("server: it is shutting down")
    assert server.stop() == 0
    assert not [line for line in server.lines if "Traceback" in line or "never retrieved" in line]


def test_what_runs_ends_before_the_server_does(model: Path) -> None:
    server = start(model, "--drain-seconds", "300")
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 400}) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/ready").status_code == 503)
        refused = client.post("/v1/completions", json={"prompt": "y"})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
    assert server.stop() == 0


def test_an_engine_that_dies_is_told_of_and_ends_the_server(model: Path) -> None:
    server = start(model)
    child = int(subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True).stdout.split()[0])
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json=LONG) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        os.kill(child, signal.SIGKILL)
        assert "was killed by SIGKILL" in [line for line in lines if line][-1]
    assert server.stop() == 3
    assert any("engine: its process was killed by SIGKILL" in line for line in server.lines)


def test_the_engine_ends_with_a_server_that_is_killed(model: Path) -> None:
    server = start(model)
    child = int(subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True).stdout.split()[0])
    server.process.kill()
    server.stop()
    eventually(lambda: not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["/nowhere.tsa"], 1, "/nowhere.tsa: does not exist"),
        (["MODEL", "--host", "0.0.0.0"], 2, "--host: anyone who reaches 0.0.0.0 could use the model; give --api-key KEY"),
        (["MODEL", "--port", "TAKEN"], 3, "can not listen there (Address already in use); give another --port"),
        (["MODEL", "--ssl-certfile", "x.pem"], 2, "one is given without the other"),
        (["MODEL", "--ssl-certfile", "/nowhere.pem", "--ssl-keyfile", __file__], 1, "/nowhere.pem: is not a file"),
        (["MODEL", "--ssl-certfile", __file__, "--ssl-keyfile", __file__], 1, "test_http.py: can not be used ("),
        (["MODEL", "--cache-bytes", "10"], 3, "the cache memory holds no page"),
        (["MODEL", "--max-sequences", "0"], 2, "--max-sequences: got 0"),
        (["MODEL", "--max-tokens-per-minute-per-key", "5"], 2, "--max-tokens-per-minute-per-key: there are no API keys"),
        (["MODEL", "--http-processes", "3", "--cache-bytes", "10"], 3, "the cache memory holds no page"),
        (["MODEL", "--http-processes", "2", "--tool-parser", "x"], 2, "there is no parser `x`"),
        (["MODEL", "--http-processes", "2", "--grpc"], 2, "--http-processes: given with --grpc, but a worker is one process"),
    ],
)
def test_a_server_that_can_not_start_says_why_in_one_line(model: Path, server: Server, arguments: list[str], code: int, said: str) -> None:
    given = [{"MODEL": str(model), "TAKEN": server.url.rpartition(":")[2]}.get(argument, argument) for argument in arguments]
    port = [] if "--port" in given else ["--port", "0"]
    done = subprocess.run([sys.executable, "-m", "tsrun", "serve", *given, *port], capture_output=True, text=True, timeout=60, check=False)
    *before, last = done.stderr.splitlines()
    assert (done.returncode, said in last, all("loading toy.tsa" in line for line in before)) == (code, True, True), done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_what_is_written_to_a_connection_is_sent_at_once(host: str) -> None:
    """Without it each answer after a connection's first takes 40 ms more."""
    found: list[int] = []

    async def accept() -> None:
        listening = listen_at(host, 0)
        done = asyncio.Event()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            done.set()

        async with await asyncio.start_server(connected, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            await done.wait()
            writer.close()

    asyncio.run(accept())
    assert found == [1]
