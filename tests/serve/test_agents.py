"""Coding agents' own programs against a server, started by `tsrun launch`: each lists a folder, writes a file, reads it and says so.

What the model would choose to write is in a script (`scripted_engine.py`), all else is real.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.serve.client_packages import client_environment, node_folder
from tests.serve.conftest import Server
from tests.serve.scripted_engine import Task, call

pytestmark = pytest.mark.clients

REPORT = "Äpfel: 3\nBirnen: 5\n"
DONE = "The report is written."
SECONDS = 120


@dataclass(frozen=True)
class Agent:
    """arguments: those of one task without questions, before the prompt; calls: of its own tools, for the path of a file."""

    name: str
    arguments: tuple[str, ...]
    calls: Callable[[Path], list[str]]


AGENTS = (
    Agent(
        "claude",
        ("--print", "--permission-mode", "acceptEdits", "--allowed-tools", "Bash Read Write", "--"),
        lambda file: [
            call("Bash", command="ls", description="List files"),
            call("Write", file_path=str(file), content=REPORT),
            call("Read", file_path=str(file)),
        ],
    ),
    Agent(
        "codex",
        ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        lambda file: [
            call("exec_command", cmd="ls"),
            call("exec_command", cmd=f"printf '%s' '{REPORT}' > {file.name}"),
            call("exec_command", cmd=f"cat {file.name}"),
        ],
    ),
    Agent(
        "opencode",
        ("run", "--auto"),
        lambda file: [
            call("bash", command="ls", description="List files"),
            call("write", filePath=str(file), content=REPORT),
            call("read", filePath=str(file)),
        ],
    ),
    Agent(
        "qwen",
        ("--yolo",),
        lambda file: [
            call("run_shell_command", command="ls", is_background=False),
            call("write_file", file_path=str(file), content=REPORT),
            call("read_file", file_path=str(file)),
        ],
    ),
)


def counters(server: Server) -> dict[str, float]:
    """By name, all labels of one together."""
    with server.client() as client:
        lines = re.findall(r"^([\w:]+)(?:{[^}]*})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    found: dict[str, float] = {}
    for name, value in lines:
        found[name] = found.get(name, 0.0) + float(value)
    return found


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_an_agent_does_a_task_of_three_calls(agent: Agent, scripted: Server, script: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("3 apples, 5 pears")
    report, mark = work / "report.txt", f"job-{agent.name}-7"
    first, *others = agent.calls(report)
    Task(mark, [f"I look at what is there.\n{first}", *others, DONE]).write(script, agent.name)
    before = counters(scripted)

    command = [sys.executable, "-m", "tsrun", "launch", agent.name, "--url", scripted.url, "--", *agent.arguments]
    prompt = f"{mark}: write report.txt from notes.txt"
    ended = subprocess.run(
        [*command, prompt],
        cwd=work,
        env=client_environment(node_folder() / ".bin", tmp_path / "home"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert report.read_text() == REPORT
    assert DONE in ended.stdout, said
    done = {name: value - before.get(name, 0.0) for name, value in counters(scripted).items()}
    assert done["vllm:request_success_total"] >= 4
    # The first of four turns is computed; the others find all but what is new since the turn before.
    assert done["vllm:prefix_cache_hits_total"] > 0.7 * done["vllm:prompt_tokens_total"]
    assert done.get("tsrun:prefix_misses_total", 0.0) == 0
    assert counters(scripted)["vllm:num_requests_running"] == 0
