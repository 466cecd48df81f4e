"""A server as users have it: the command, in a process of its own, in front of a toy model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from tests.runtime.toy import Toy, write_artifact
from tests.serve.scripted_engine import FOLDER

ROOT = Path(__file__).parents[2]
_READY = re.compile(r" at ((?:https?|grpc)://[^\s,]+)(?: \(metrics at (\S+)\))?, ready in")


@dataclass
class Server:
    """`lines` is what it said; `metrics_url` where a worker, which has no HTTP at `url`, answers probes."""

    process: subprocess.Popen[str]
    url: str = ""
    metrics_url: str | None = None
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.metrics_url or self.url, timeout=60, **options)  # type: ignore[arg-type]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        if self.reader is not None:
            self.reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def start(*arguments: str | Path, module: str = "tsrun", **environment: str) -> Server:
    """Start `tsrun serve` at a free port and wait until it is ready; AssertionError with what it said when it ends instead."""
    command = [sys.executable, "-m", module, "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment)
    server = Server(process)
    assert process.stderr is not None
    for line in process.stderr:
        server.lines.append(line)
        if found := _READY.search(line):
            server.url, server.metrics_url = found[1], found[2]
            break
    assert server.url, "".join(server.lines)

    def read() -> None:
        assert process.stderr is not None
        server.lines.extend(process.stderr)

    server.reader = threading.Thread(target=read, daemon=True)
    server.reader.start()
    return server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of bytes, with a context long enough for a conversation."""
    return write_artifact(Toy(context=4096), tmp_path_factory.mktemp("serve") / "toy.tsa", ranks=1)


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[Server]:
    running = start(model)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def embedding_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a model that gives embeddings."""
    path = write_artifact(Toy(context=4096, embeds=True), tmp_path_factory.mktemp("embeds") / "toy.tsa")
    running = start(path)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what is written by `scripted`: a `Task` each (`scripted_engine.py`)."""
    return tmp_path_factory.mktemp("script")


@pytest.fixture(scope="session")
def agent_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.serve.agent_model import write_agent_checkpoint

    return write_agent_checkpoint(tmp_path_factory.mktemp("agent") / "checkpoint")


@pytest.fixture(scope="session")
def scripted(script: Path, agent_checkpoint: Path) -> Iterator[Server]:
    """A server for prompts of agents, whose model writes what the script says."""
    from tests.models.running import compiled

    model = compiled(agent_checkpoint, agent_checkpoint.parent / "agent.tsa")
    limits = ("--max-step-tokens", "4096", "--cache-bytes", str(2**29))
    running = start(model, *limits, module="tests.serve.scripted_server", **{FOLDER: str(script)})
    yield running
    assert running.stop() == 0
