"""A server as a process, from its start until it answers, and to its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 600.0
CONVERSATION = Path(__file__).parent / "conversation.jinja"  # base models have no chat template


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The server's URL. Ends this program with the end of what it said where it does not come up."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}, start_new_session=True)
        try:
            ends = time.monotonic() + START_SECONDS
            while not answers(port):
                if time.monotonic() > ends or server.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command[0]} did not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve_until_interrupted(command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> None:
    with running(command, port, environment) as url:
        print(f"ready at {url}", file=sys.stderr)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return
