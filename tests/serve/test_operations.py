"""What operators see of a server: its log, its traces, its dashboard; and that it ends in order also while it starts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.serve.conftest import ROOT, Server, start
from tests.serve.test_http import LONG, chat, eventually

from tsrun.generation import Times

SECRET = "a prompt that nobody else may read"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def requests_of(server: Server) -> list[dict[str, Any]]:
    return [event for line in server.lines if (event := json.loads(line))["event"] == "request"]


def named(server: Server, identity: str) -> dict[str, Any]:
    """The line of a request, once it is there."""
    eventually(lambda: any(event["request_id"] == identity for event in requests_of(server)))
    (found,) = [event for event in requests_of(server) if event["request_id"] == identity]
    return found


def test_a_request_is_one_line_of_json_without_a_word_of_it(model: Path) -> None:
    server = start(model, "--api-key", "key-of-one", "--api-key", "key-of-two", "--log-format", "json")
    key = {"authorization": "Bearer key-of-two"}
    with server.client() as client:
        asked = chat(SECRET, max_tokens=7, n=2)
        answer = client.post("/v1/chat/completions", json=asked, headers={**key, "x-request-id": "whole"}).json()
        client.post("/v1/chat/completions", json={**asked, "temperature": -1}, headers={**key, "x-request-id": "refused"})
        client.post("/v1/completions", json={"prompt": SECRET, "regex": "(" + SECRET}, headers={**key, "x-request-id": "mended"})
        client.post("/v1/completions", json={"prompt": SECRET}, headers={"x-request-id": "stranger"})
        client.post("/tokenize", json={"prompt": SECRET}, headers={**key, "x-request-id": "tokens"})
        client.get("/health", headers={"x-request-id": "probe"})
        with client.stream("POST", "/v1/completions", json=LONG, headers={**key, "x-request-id": "gone"}) as stream:
            next(stream.iter_lines())
    whole, gone = named(server, "whole"), named(server, "gone")
    assert server.stop() == 0
    assert 0 < whole.pop("ttft_seconds") < whole.pop("total_seconds")
    assert abs(datetime.fromisoformat(whole.pop("ts")).timestamp() - time.time()) < 120
    assert whole == {
        "level": "info",
        "event": "request",
        "request_id": "whole",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "toy",
        "key": "key 2",
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "cached_tokens": answer["usage"]["prompt_tokens_details"]["cached_tokens"],
        "completion_tokens": 14,
        "finish_reason": "length",
    }
    assert (gone["status"], gone["finish_reason"], gone["completion_tokens"] > 0) == (200, "abort", True)
    refused = [named(server, identity) for identity in ("refused", "mended", "stranger", "tokens")]
    assert [event["status"] for event in refused] == [400, 400, 401, 200]
    assert [event.get("key") for event in refused] == ["key 2", "key 2", None, "key 2"]
    assert all("finish_reason" not in event for event in (refused[0], refused[2], refused[3]))
    said = "".join(server.lines)
    assert "probe" not in said
    assert not any(secret in said for secret in (SECRET, "key-of", answer["choices"][0]["message"]["content"]))


def test_text_is_for_people_and_the_level_says_how_much(model: Path) -> None:
    server = start(model, "--log-format", "text", "--log-level", "debug")
    with server.client() as client:
        client.get("/health", headers={"x-request-id": "probe"})
        eventually(lambda: any(re.search(r"Z debug   request request_id=probe path=/health status=200 ", line) for line in server.lines))
    assert server.stop() == 0


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A receiver of OTLP over HTTP: its address, and the spans that came."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra `otel` is not installed")
    spans: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            request = service.ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                names = attributes(resource.resource)
                assert names["service.name"] == "tsrun"
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(service.ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    def value(found: Any) -> Any:
        kind = found.WhichOneof("value")
        return [value(one) for one in found.array_value.values] if kind == "array_value" else getattr(found, kind)

    return {one.key: value(one.value) for one in of.attributes}


@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_request_is_a_trace_of_what_it_waited_for(model: Path, collector: tuple[str, list[Any]], given: str) -> None:
    url, spans = collector
    option = ["--otlp-endpoint", url] if given == "option" else []
    environment = {} if given == "option" else {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
    server = start(model, *option, **environment)
    with server.client() as client:
        asked = chat(max_tokens=9)
        usage = client.post("/v1/chat/completions", json=asked, headers={"traceparent": PARENT, "x-request-id": "a"}).json()["usage"]
        client.post("/v1/messages", json={"messages": []}, headers={"x-request-id": "b"})
        client.get("/v1/models")
    assert server.stop() == 0
    by_id = {attributes(span)["tsrun.request_id"]: span for span in spans if span.name == "chat toy"}
    assert by_id.keys() == {"a", "b"}
    span = by_id["a"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    found = attributes(span)
    assert {name: found[name] for name in found if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tsrun",
        "gen_ai.request.model": "toy",
        "gen_ai.response.model": "toy",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert (found["url.path"], found["http.response.status_code"]) == ("/v1/chat/completions", 200)
    below = [child for child in spans if child.parent_span_id == span.span_id]
    assert [child.name for child in below] == ["queue", "prefill", "decode"]
    assert all(child.trace_id == span.trace_id for child in below)
    times = [span.start_time_unix_nano, *(child.start_time_unix_nano for child in below), below[-1].end_time_unix_nano]
    assert times == sorted(times)
    assert [child.end_time_unix_nano for child in below[:2]] == [child.start_time_unix_nano for child in below[1:]]
    assert abs(span.start_time_unix_nano / 1e9 - time.time()) < 120
    refused = attributes(by_id["b"])
    assert (refused["http.response.status_code"], "error.type" in refused, by_id["b"].parent_span_id) == (400, True, b"")
    assert len(spans) == 5


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(model: Path) -> None:
    server = start(model, "--otlp-endpoint", "http://127.0.0.1:9")
    with server.client() as client:
        for _ in range(3):
            assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 6, "two seconds are for the traces"


def test_traces_without_their_packages_are_refused_in_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()  # hides those that are installed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "tsrun", "serve", str(model), "--port", "0", "--otlp-endpoint", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "--otlp-endpoint: the package `opentelemetry.exporter` is not installed; pip install 'tsc-llm[otel]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_metric_of_the_dashboard_is_one_that_the_server_has(model: Path) -> None:
    board = json.loads(files("tsrun.serve").joinpath("grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"(?:vllm|tsrun):\w+", query)}
    assert len(asked) > 15
    server = start(model)
    with server.client() as client:
        client.post("/v1/chat/completions", json=chat())
        client.post("/v1/chat/completions", json={})

        def samples() -> set[str]:
            return set(re.findall(r"^([\w:]+){[^}]*model_name=\"toy\"", client.get("/metrics").text, re.MULTILINE))

        eventually(lambda: asked <= samples())
        text = client.get("/metrics").text
    assert server.stop() == 0
    for phase in ("queue", "prefill", "decode"):
        assert f'vllm:request_{phase}_time_seconds_count{{model_name="toy"}} 1.0' in text


def test_conversations_take_the_form_that_the_operator_gives(model: Path, tmp_path: Path) -> None:
    form = tmp_path / "form.jinja"
    form.write_text("{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}")
    running = start(model, "--chat-template", form)
    try:
        with running.client() as client:
            asked = client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
            assert asked["count"] == len("[user]hi")
            assert client.post("/v1/chat/completions", json=chat("hi")).status_code == 200
    finally:
        assert running.stop() == 0


def test_the_phases_of_a_request_follow_each_other() -> None:
    assert Times(1, 2, 4, 8).phases() == [("queue", 1, 2), ("prefill", 2, 4), ("decode", 4, 8)]
    assert Times(1, 2, 4).phases() == [("queue", 1, 2), ("prefill", 2, 4)]
    assert Times(1, 2, None, 8).phases() == [("queue", 1, 2), ("prefill", 2, 8)]
    assert Times(1, ended=8).phases() == [("queue", 1, 8)]
    assert Times(1).phases() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.5])
def test_a_server_that_is_told_to_end_while_it_starts_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, seconds: float
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    command = [sys.executable, "-m", "tsrun", "serve", str(model), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    assert "loading toy.tsa" in process.stderr.readline()
    eventually(lambda: list(temporary.iterdir()))
    time.sleep(seconds)
    began = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    if "ready in" not in said:
        assert (process.returncode, said) == (code, "")
    assert time.monotonic() - began < 8  # and not by waiting for an engine that hears nothing
    assert list(temporary.iterdir()) == []
