"""What makes no progress is ended: a whole engine whose step never ends, or one request that steps do not bring forward."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.runtime.toy import Toy, write_artifact
from tests.serve.conftest import Server, start
from tests.serve.test_http import LONG, eventually, metric

from tsrun.generation import Running
from tsrun.serve.progress import Progress


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def engine_of(server: Server) -> int:
    (engine,) = children(server.process.pid)
    return engine


def events(server: Server, said: str) -> list[dict[str, Any]]:
    """Of the log, which is JSON where it is no terminal."""
    found = [json.loads(line) for line in server.lines if line.startswith("{")]
    return [event for event in found if said in event["event"]]


def broken_off(server: Server, freeze: int) -> str:
    """Freeze a process in the middle of a stream that has begun; return its last line. The server is unready before that."""
    with server.client() as client, client.stream("POST", "/v1/completions", json=LONG, headers={"x-request-id": "held"}) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(freeze, signal.SIGSTOP)
        eventually(lambda: "the engine has made nothing for" in client.get("/ready").json().get("why", ""))
        return [line for line in lines if line][-1]


def test_an_engine_that_is_stopped_is_ended_and_its_requests_told_why(model: Path) -> None:
    server = start(model, "--watchdog-seconds", "2")
    engine = engine_of(server)
    assert "engine: the watchdog ended it: a step had not ended after 2 s" in broken_off(server, engine)
    assert server.stop() == 3
    (said,) = events(server, "the watchdog ends the engine")
    assert (said["level"], said["engine_pid"], said["process_state"]) == ("error", engine, "T (stopped)")
    assert said["details"] == "the process took no signal: it does not run"
    (held,) = said["requests"]
    assert (held["request_id"], held["tokens"] > 0) == ("held", True)
    assert [one["phase"] for one in said["running"]] == ["decoding"]
    assert not Path(f"/proc/{engine}").exists()


def test_a_step_that_never_ends_is_put_down_with_the_stacks_of_all_threads(tmp_path: Path) -> None:
    """Really stuck: one rank waits in a collective for another that does not run."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = write_artifact(Toy(context=4096), tmp_path / "two.tsa", ranks=2)
    server = start(path, "--watchdog-seconds", "3", TMPDIR=str(temporary))
    engine = engine_of(server)
    (rank,) = [child for child in children(engine) if "tsrun.worker" in Path(f"/proc/{child}/cmdline").read_text()]
    try:
        assert "the watchdog ended it" in broken_off(server, rank)
    finally:
        os.kill(rank, signal.SIGCONT)  # it ends with the engine, once it runs
    assert server.stop() == 3
    (said,) = events(server, "the watchdog ends the engine")
    assert said["process_state"] != "T (stopped)"
    assert said["details"].count("most recent call first") >= 2
    assert '/ranks.py", line' in said["details"]
    (running,) = said["running"]
    assert (running["prompt"], running["pages"] > 0, running["computed"] > 0) == (2, True, True)
    assert said["load"]["running"] == 1
    eventually(lambda: not Path(f"/proc/{rank}").exists())
    assert list(temporary.iterdir()) == []


def test_a_request_that_steps_pass_over_is_ended_and_others_go_on(model: Path) -> None:
    """A long prompt of the last priority is under way when others of the first take every row of every step."""
    server = start(model, "--watchdog-seconds", "2", "--max-step-tokens", "16", "--no-prefix-cache")
    stop = threading.Event()
    statuses: list[int] = []

    def ask(letter: str, priority: int, identity: str) -> httpx.Response:
        body = {"prompt": letter * 4000, "max_tokens": 1, "priority": priority}
        with server.client() as client:
            return client.post("/v1/completions", json=body, headers={"x-request-id": identity})

    def flood(letter: str) -> None:
        while not stop.is_set():
            statuses.append(ask(letter, 0, "first").status_code)

    answers: list[httpx.Response] = []
    last = threading.Thread(target=lambda: answers.append(ask("z", 7, "last")))
    others = [threading.Thread(target=flood, args=(letter,)) for letter in "abcd"]
    try:
        last.start()
        eventually(lambda: metric(server, "vllm:num_requests_running") == 1)
        for thread in others:
            thread.start()
        last.join(60)
        (answer,) = answers
        assert answer.status_code == 503, answer.text
        assert "the watchdog ended it: the engine went on for 2 s without it" in answer.json()["error"]["message"]
        eventually(lambda: len(statuses) >= 4)
        assert set(statuses) == {200}
        with server.client() as client:  # which hears of it with the engine's next figures
            eventually(lambda: client.get("/health").json().get("ended_by_watchdog") == 1)
            assert client.get("/health").status_code == 200
        eventually(lambda: metric(server, "tsrun:stuck_requests_total") == 1)
    finally:
        stop.set()
        for thread in others:
            if thread.ident is not None:
                thread.join()
        assert server.stop() == 0
    (said,) = events(server, "the watchdog ends a request")
    assert (said["request_id"], said["stuck"]["phase"], said["stuck"]["computed"] < 4000) == ("last", "prefilling", True)
    assert len(said["running"]) > 1


def test_a_server_without_a_watchdog_waits(model: Path) -> None:
    server = start(model, "--watchdog-seconds", "0")
    engine = engine_of(server)
    with server.client() as client:
        os.kill(engine, signal.SIGSTOP)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={"prompt": "x"}, timeout=3)
        os.kill(engine, signal.SIGCONT)
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
    assert server.stop() == 0


def one(request: int, computed: int, length: int = 100) -> Running:
    return Running(request, "prefilling", 100, length, computed, 7)


def test_progress_is_a_token_or_a_part_of_the_prompt() -> None:
    progress = Progress(10)
    assert progress.stuck([one(1, 16), one(2, 16)], 0, 0.0) == []
    assert progress.stuck([one(1, 16), one(2, 32)], 50, 9.0) == []
    assert progress.stuck([one(1, 16), one(2, 32)], 60, 10.0) == [one(1, 16)]
    assert progress.stuck([one(2, 32, 101)], 70, 19.5) == []
    assert progress.stuck([one(2, 32, 101)], 80, 29.0) == []
    assert progress.stuck([one(2, 32, 101)], 90, 29.5) == [one(2, 32, 101)]


def test_who_waits_in_the_queue_is_not_stuck_and_begins_anew_when_it_runs() -> None:
    progress = Progress(10)
    progress.stuck([one(1, 16)], 0, 0.0)
    assert progress.stuck([], 50, 30.0) == []  # preempted
    assert progress.stuck([one(1, 16)], 60, 31.0) == []
    assert progress.stuck([one(1, 16)], 70, 40.0) == []
    assert progress.stuck([one(1, 16)], 80, 41.0) == [one(1, 16)]


def test_steps_that_take_long_are_not_held_against_a_request() -> None:
    progress = Progress(10)
    progress.stuck([one(1, 0)], 0, 0.0)
    assert progress.stuck([one(1, 0)], 2, 60.0) == []
