"""A server of ours as a process, for as long as something is measured against it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsrun.errors import MachineError

_STOP_SECONDS = 30


@contextmanager
def served(model: Path, options: Sequence[str]) -> Iterator[str]:
    """`tsrun serve` on a free port; its URL. Raises MachineError with what it said where it does not start."""
    command = [sys.executable, "-m", "tsrun", "serve", str(model), "--port", "0", "--log-format", "json", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")  # not a pipe, which nobody would read while it is measured: a full one stops the server
        with log.open("w") as said:
            server = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL)
        try:
            yield _url(server, log)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _url(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where it is, as soon as it says that it is ready."""
    while True:
        is_over = server.poll() is not None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        for event in map(_event, lines):
            if ", ready in" in event and " at http" in event:
                return event.split(" at ", 1)[1].split(",")[0].split(" ")[0]
        if is_over:
            said = next((line.strip() for line in reversed(lines) if line.strip()), "")
            raise MachineError("tsrun serve", f"did not start ({said})", "run it by itself with these options")
        time.sleep(0.05)


def _event(line: str) -> str:
    try:
        return str(json.loads(line).get("event", ""))
    except ValueError:
        return ""
