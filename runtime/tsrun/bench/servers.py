"""A server of ours as a process, for as long as something is measured against it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsrun.errors import MachineError

_STOP_SECONDS = 30


@contextmanager
def served(model: Path, options: Sequence[str]) -> Iterator[str]:
    """`tsrun serve` on a free port; its URL. Raises MachineError with what it said where it does not start."""
    command = [sys.executable, "-m", "tsrun", "serve", str(model), "--port", "0", "--log-format", "json", *options]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, text=True)
        try:
            yield _url(server)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


def _url(server: subprocess.Popen[str]) -> str:
    """Where it is, as soon as it says that it is ready."""
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said = line.strip() or said
        try:
            event = str(json.loads(line).get("event", ""))
        except ValueError:
            continue
        if ", ready in" in event and " at http" in event:
            return event.split(" at ", 1)[1].split(",")[0].split(" ")[0]
    raise MachineError("tsrun serve", f"did not start ({said})", "run it by itself with these options")
