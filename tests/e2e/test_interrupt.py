"""An interrupt in the middle of a step of several ranks ends all of them: the others wait in a collective, and hear nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tsc.driver import compile_artifact
from tsc.request import Request


def processes_of(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_an_interrupted_generation_leaves_no_process(tmp_path: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 65536}))  # it must not end by itself
    artifact = tmp_path / "two.tsa"
    compile_artifact(Request(None, checkpoint, None, {"tp": 2}, "f32", "cpu"), artifact, lambda *_: None)
    command = [sys.executable, "-m", "tsrun", "generate", str(artifact), "-p", "the", "--max-tokens", "60000", "--ignore-eos"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert running.stdout is not None
        assert running.stdout.read(1)  # it is generating
        for _ in range(2):
            os.killpg(running.pid, signal.SIGINT)
        assert running.wait(timeout=30) == 130
        deadline = time.monotonic() + 10
        while processes_of(running.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(running.pid)
    finally:
        for pid in processes_of(running.pid):
            os.kill(pid, signal.SIGKILL)
        running.communicate()
