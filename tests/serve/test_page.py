"""The page at `/` in a browser, and `tsrun top` in a terminal: of a server that runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
from tests.serve.conftest import Server

QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    with server.client() as client:
        page = client.get("/").text
    assert not re.search(r"https?://|@import|<img|src=", page)


@pytest.mark.slow
def test_a_browser_talks_to_the_model_and_sees_the_engine(server: Server) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    command = [browser, *QUIET.split(), "--virtual-time-budget=15000", "--dump-dom", f"{server.url}/#ask=hello%20there"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert '<p class="user">hello there</p>' in page
    assert re.search(r'<p class="assistant">[^<]', page)
    assert '<h1 id="model">toy</h1>' in page
    assert re.search(r"<dt>tokens written</dt><dd>[1-9]", page)
    assert 'class="error"' not in page


def test_top_shows_the_server(server: Server) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tsrun", "top", *arguments], capture_output=True, text=True, check=False)

    with server.client() as client:
        client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, "ignore_eos": True})
    found = json.loads(run(server.url, "--json").stdout)
    assert found["model"] == "toy"
    assert found["generated_tokens"] >= 3
    assert "0 running of 32" in run(server.url, "--once").stdout
    nowhere = run("http://127.0.0.1:9")
    assert (nowhere.returncode, nowhere.stderr.count("\n"), "does not answer" in nowhere.stderr) == (3, 1, True)
    assert run("nonsense").returncode == 2
