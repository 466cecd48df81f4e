"""The SMG gateway from its wheel, in front of workers of our own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.serve.conftest import Server

_START_SECONDS = 60.0


@dataclass
class Gateway:
    """log: the file that it writes."""

    url: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)


@contextmanager
def gateway(workers: Sequence[Server], folder: Path, *options: str) -> Iterator[Gateway]:
    """AssertionError with its log where it has not all workers, and their tokenizer, in time."""
    port, metrics_port = free_ports(2)
    command = [sys.executable, "-m", "smg.launch_router", "--host", "127.0.0.1", "--port", str(port), "--worker-urls"]
    command += [worker.url for worker in workers]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--shutdown-grace-period-secs", "1", *options]
    log = folder / "gateway.log"
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            running = Gateway(f"http://127.0.0.1:{port}", log)
            _wait(running, process, len(workers))
            yield running
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(running: Gateway, process: subprocess.Popen[bytes], num_workers: int) -> None:
    ends = time.monotonic() + _START_SECONDS
    with running.client() as client:
        while not _is_ready(client, running.log, num_workers):
            assert process.poll() is None, running.log.read_text(errors="replace")
            assert time.monotonic() < ends, running.log.read_text(errors="replace")
            time.sleep(0.1)


def _is_ready(client: httpx.Client, log: Path, num_workers: int) -> bool:
    try:
        workers = client.get("/workers").json()["workers"]
    except (httpx.TransportError, ValueError, KeyError):
        return False
    is_loaded = "Successfully loaded tokenizer" in log.read_text(errors="replace")
    return is_loaded and sum(worker["status"] == "ready" for worker in workers) == num_workers


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports
