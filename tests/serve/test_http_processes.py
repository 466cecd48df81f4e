"""Several HTTP processes, which are one server to whoever asks: each request goes to whichever takes its connection."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.runtime.toy import Toy, write_artifact
from tests.serve.conftest import Server, start
from tests.serve.test_http import LONG, chat, eventually

NUMBER = 3


def http_processes(server: Server) -> list[int]:
    """The pids of those that the first one has started."""
    pids = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True).stdout.split()
    return [int(pid) for pid in pids if b"http_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def cpu_ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


@pytest.fixture(scope="module")
def several(model: Path) -> Iterator[Server]:
    running = start(model, "--http-processes", str(NUMBER))
    yield running
    assert running.stop() == 0


def post(server: Server, path: str, body: Any, **options: Any) -> httpx.Response:
    """By a connection of its own."""
    with server.client(**options) as client:
        return client.post(path, json=body)


def test_they_give_what_one_gives_and_all_of_them_answer(server: Server, several: Server) -> None:
    expected = {text: post(server, "/v1/chat/completions", chat(text, max_tokens=20)).json()["choices"] for text in map(str, range(8))}
    before = {pid: cpu_ticks(pid) for pid in http_processes(several)}
    assert len(before) == NUMBER - 1

    def ask(number: int) -> None:
        text = str(number % 8)
        assert post(several, "/v1/chat/completions", chat(text, max_tokens=20)).json()["choices"] == expected[text]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(96)))
    assert all(cpu_ticks(pid) > ticks for pid, ticks in before.items())


def test_a_conversation_goes_on_at_any_of_them(several: Server) -> None:
    for _ in range(4):  # of three processes at least two take part, as good as surely
        first = post(several, "/v1/responses", {"input": "of the long way home through wind and rain", "max_output_tokens": 30}).json()
        seen = {post(several, "/v1/responses", {"input": "and?", "previous_response_id": first["id"], "max_output_tokens": 1}).status_code}
        for _ in range(6):
            with several.client() as client:
                found = client.get(f"/v1/responses/{first['id']}")
            seen.add(found.status_code)
            assert found.json() == first
        assert seen == {200}
        with several.client() as client:
            assert client.delete(f"/v1/responses/{first['id']}").status_code == 200
        with several.client() as client:
            assert client.get(f"/v1/responses/{first['id']}").status_code == 404


def test_a_conversation_becomes_the_same_tokens_as_at_one(server: Server, several: Server) -> None:
    """What the toy writes is bytes that are no text: its text alone, tokenized again, would be other tokens."""

    def conversation(asked: Server) -> list[Any]:
        messages = [{"role": "user", "content": "no other test begins so, and it is long enough to fill several pages and to be kept"}]
        body = {"max_tokens": 40, "temperature": 0, "session_id": "turns", "continue_final_message": True}
        text, turns = "well", []
        for _ in range(8):
            answer = post(asked, "/v1/chat/completions", {**body, "messages": [*messages, {"role": "assistant", "content": text}]}).json()
            text += answer["choices"][0]["message"]["content"]
            del answer["usage"]["completion_tokens_details"]  # how many were drafted goes by how long steps take
            turns.append((text, answer["usage"]))
        return turns

    def known() -> float:
        with several.client() as client:
            found = re.search(r"^tsrun:known_tokens_total{[^}]*} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        assert found
        return float(found[1])

    before = known()
    assert conversation(several) == conversation(server)
    assert known() > before + 8 * 90


def test_counts_are_of_all(several: Server) -> None:
    def counted() -> tuple[float, float, int]:
        with several.client() as client:
            text = client.get("/metrics").text
        found = [re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE) for name in ("vllm:prompt_tokens_total", "tsrun:steps_total")]
        with several.client() as client:
            status = client.get("/status").json()
        assert len(found[0]) == len(found[1]) == 1
        return float(found[0][0]), float(found[1][0]), int(status["prompt_tokens"])

    before = counted()
    took = [post(several, "/v1/completions", {"prompt": "counted", "max_tokens": 1}).json()["usage"]["prompt_tokens"] for _ in range(12)]
    expected = before[0] + sum(took)
    for _ in range(6):
        eventually(lambda: counted()[0] == counted()[2] == expected)


def test_limits_are_of_all(tmp_path: Path) -> None:
    """Of a model so slow that its answers last."""
    model = write_artifact(Toy(context=4096, layers=24), tmp_path / "slow.tsa")
    limits = ("--max-sequences", "1", "--max-waiting", "3", "--max-requests-per-key", "2", "--max-tokens-per-minute-per-key", "20000")
    server = start(
        model, "--http-processes", str(NUMBER), "--speculate", "off", *limits, "--api-key", "a", "--api-key", "b", "--api-key", "c"
    )
    keys = [{"authorization": f"Bearer {key}"} for key in "abc"]
    body = chat(stream=True, max_tokens=3000)
    one = {"prompt": "x", "max_tokens": 1}
    try:
        for _ in range(3):
            held = []
            for key in (0, 0, 1, 1):
                client = server.client(headers=keys[key])
                stream = client.stream("POST", "/v1/chat/completions", json=body)
                assert stream.__enter__().status_code == 200
                held.append((client, stream))
            for _ in range(4):
                assert post(server, "/v1/completions", one, headers=keys[0]).status_code == 429
                assert post(server, "/v1/completions", one, headers=keys[2]).status_code == 503
            for client, stream in held:
                stream.__exit__(None, None, None)
                client.close()
            eventually(lambda: post(server, "/v1/completions", one, headers=keys[2]).status_code == 200)
        left = [int(post(server, "/v1/completions", one, headers=keys[0]).headers["x-ratelimit-remaining-tokens"]) for _ in range(6)]
        assert min(left) > 20_000 - 3 * 2 * 3200, "what was broken off is given back"
        status = {post(server, "/v1/completions", one | {"prompt": "y" * 4000, "max_tokens": 90}, headers=keys[2]).status_code}
        for number in range(12):
            status.add(post(server, "/v1/completions", one | {"prompt": f"{number}" * 2000, "max_tokens": 90}, headers=keys[2]).status_code)
        assert status == {200, 429}
    finally:
        assert server.stop() == 0


def test_prompts_of_two_keys_are_apart_at_all_of_them_and_those_of_one_are_not(model: Path) -> None:
    server = start(model, "--http-processes", "2", "--api-key", "a", "--api-key", "b")
    body = chat("a prompt that is long enough to fill more than a page of the cache, twice over", max_tokens=1)

    def cached(key: str) -> bool:
        answer = post(server, "/v1/chat/completions", body, headers={"authorization": f"Bearer {key}"}).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"]) > 0

    try:
        assert [cached("a"), cached("b"), *(cached(key) for key in "abababab")] == [False, False, *[True] * 8]
    finally:
        assert server.stop() == 0


def test_what_runs_at_any_of_them_ends_before_the_server_does(model: Path) -> None:
    server = start(model, "--drain-seconds", "300", "--http-processes", str(NUMBER))
    ends: list[str] = []
    begun = threading.Barrier(7)

    def read() -> None:
        with server.client() as client, client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 300}) as stream:
            lines = stream.iter_lines()
            next(lines)
            begun.wait()
            ends.append([line for line in lines if line][-1])

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    begun.wait()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    for _ in range(4):
        refused = post(server, "/v1/completions", {"prompt": "y"})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    for thread in threads:
        thread.join()
    assert ends == ["data: [DONE]"] * 6
    pids = http_processes(server)
    assert server.stop() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_one_that_dies_ends_the_server_when_what_runs_elsewhere_has_ended(model: Path) -> None:
    server = start(model, "--http-processes", "2", "--drain-seconds", "60")
    (other,) = http_processes(server)
    os.kill(other, signal.SIGSTOP)  # so that the first one takes the connection
    with server.client() as client, client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 300}) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(other, signal.SIGKILL)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.stop() == 3
    assert any("HTTP process 2: it was killed by SIGKILL; start the server again" in line for line in server.lines)


def test_an_engine_that_dies_is_told_of_at_all_of_them(model: Path) -> None:
    server = start(model, "--http-processes", str(NUMBER))
    children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True).stdout.split()
    (engine,) = {int(pid) for pid in children} - set(http_processes(server))
    ends: list[str] = []
    begun = threading.Barrier(7)

    def read() -> None:
        with server.client() as client, client.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = stream.iter_lines()
            next(lines)
            begun.wait()
            ends.append([line for line in lines if line][-1])

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    begun.wait()
    os.kill(engine, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert [json.loads(end.removeprefix("data: "))["error"]["message"].count("was killed by SIGKILL") for end in ends] == [1] * 6
    assert server.stop() == 3
    assert sum("engine: its process was killed by SIGKILL" in line for line in server.lines) == 1


def test_they_end_with_a_first_one_that_is_killed(model: Path) -> None:
    server = start(model, "--http-processes", str(NUMBER))
    children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(children) == NUMBER
    server.process.kill()
    server.stop()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
