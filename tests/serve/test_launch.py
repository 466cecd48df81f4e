"""`tsrun launch`: what a client is told of a server, and what is said where it can not be. With the clients themselves: test_agents.py."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serve.conftest import Server, start

from tsrun.launch_client import CLIENTS


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tsrun", "launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_the_address_and_the_model(client: str, server: Server) -> None:
    done = launch(client, "--url", f"{server.url}/v1/", "--api-key", "it's secret", "--print", "--", "--help", "two words")
    assert (done.returncode, done.stderr) == (0, "")
    words = shlex.split(done.stdout)
    assert words[-2:] == ["--help", "two words"]
    assert client in words
    assert any(server.url in word for word in words)
    assert any("it's secret" in word for word in words)
    assert any(word.endswith(("toy", '"toy"')) or '"toy"' in word for word in words)
    assert not any("/v1/v1" in word for word in words)


def test_the_client_becomes_the_process(server: Server, tmp_path: Path) -> None:
    program = tmp_path / "claude"
    program.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\nsys.exit(7)\n")
    program.chmod(0o755)
    done = launch("claude", "--url", server.url, "--", "-p", "hello", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 7
    arguments, environment = json.loads(done.stdout)
    assert arguments == ["-p", "hello"]
    assert (environment["ANTHROPIC_BASE_URL"], environment["ANTHROPIC_MODEL"]) == (server.url, "toy")
    assert environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "1024", "a quarter of the context"


def test_what_can_not_be_is_said_in_one_line(server: Server, model: Path, tmp_path: Path) -> None:
    locked = start(model, "--api-key", "secret")
    try:
        for arguments, code, said in (
            (["--url", "localhost:8000"], 2, "give one such as http://127.0.0.1:8000"),
            (["--url", "http://127.0.0.1:9"], 3, "no server answers ([Errno 111] Connection refused); start `tsrun serve`"),
            (["--url", locked.url], 1, "(status 401); give its --api-key"),
            (["--url", f"{server.url}/health"], 1, "(status 404)"),
            (["--url", server.url], 3, "codex: is not installed; npm install --global @openai/codex"),
        ):
            done = launch("codex", *arguments, PATH=str(tmp_path))
            assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (code, True, 1), done.stderr
    finally:
        assert locked.stop() == 0
