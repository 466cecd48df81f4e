"""`tsrun bench` against a real server of a toy model."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from tests.serve.conftest import Server

from tsrun.bench.records import Result, TurnRecord, read
from tsrun.bench.servers import served
from tsrun.bench.summary import figures
from tsrun.cli import run

SMALL = (
    "--scale",
    "0.004",
    "--answers",
    "0.05",
    "--turns",
    "0.2",
    "--pace",
    "0",
    "--sessions",
    "3",
    "--repeats",
    "1",
    "--tokens-per-word",
    "5.5",
)


def bench(server: Server, file: Path, *options: str) -> Result:
    assert run(["bench", "agentic", "--url", server.url, "--json", str(file), *SMALL, *options]) == 0
    return read(file)


def asked(turn: TurnRecord) -> tuple[object, ...]:
    return turn.session, turn.turn, turn.forked, turn.prompt_tokens, turn.completion_tokens, turn.cancelled


def test_sessions_run_to_their_ends_and_find_their_beginnings(server: Server, tmp_path: Path) -> None:
    result = bench(server, tmp_path / "a.json", "--concurrency", "2", "--seed", "5")
    [found] = [figures(one, 1, 0.0) for one in result.runs]
    assert found.failed == 0
    assert found.turns >= 6
    assert found.user_tps
    assert found.hit_share is not None
    assert found.hit_share > 0.9  # pages of 16 tokens, of conversations of a few hundred
    assert {turn.user for turn in result.runs[0].turns} == {0, 1}
    assert result.runs[0].client.core_share < 1


def test_one_user_asks_the_same_again(server: Server, tmp_path: Path) -> None:
    """Of another server the same sessions, but this one knows them: only what it finds may differ."""
    first, again = (bench(server, tmp_path / name, "--concurrency", "1", "--seed", "6") for name in ("a.json", "b.json"))
    kept = [[asked(turn) for turn in result.runs[0].turns if turn.session < 3] for result in (first, again)]
    assert kept[0] == kept[1]


def test_arrivals_do_not_wait_for_each_other(server: Server, tmp_path: Path) -> None:
    result = bench(server, tmp_path / "a.json", "--rate", "240")
    assert {turn.user for turn in result.runs[0].turns} >= {0, 1, 2}
    assert result.runs[0].concurrency is None


def test_hostile_and_impatient_clients_fail_nothing(server: Server, tmp_path: Path) -> None:
    from importlib.resources import files

    workload = (files("tsrun.bench") / "agentic.toml").read_text()
    for old, new in (
        ("nonce_share = 0.02", "nonce_share = 0.7"),
        ("schema_share = 0.01", "schema_share = 0.3"),
        ("cancelled_share = 0.03", "cancelled_share = 0.5"),
    ):
        assert old in workload
        workload = workload.replace(old, new)
    (tmp_path / "w.toml").write_text(workload)
    result = bench(
        server, tmp_path / "a.json", "--concurrency", "2", "--sessions", "6", "--workload", str(tmp_path / "w.toml"), "--seed", "5"
    )
    [found] = [figures(one, 1, 0.0) for one in result.runs]
    assert found.failed == 0
    assert found.cancelled
    assert found.refused
    nonces = [turn for turn in result.runs[0].turns if turn.hostile == "nonce" and not turn.cancelled]
    assert nonces
    assert all(not turn.cached_tokens for turn in nonces)


def test_requests_of_one_length(server: Server, tmp_path: Path) -> None:
    options = [
        "--prompt-tokens",
        "100",
        "--answer-tokens",
        "8",
        "--shared-tokens",
        "50",
        "--requests",
        "4",
        "--concurrency",
        "2",
        "--repeats",
        "1",
    ]
    assert run(["bench", "serve", "--url", server.url, "--json", str(tmp_path / "a.json"), *options]) == 0
    result = read(tmp_path / "a.json")
    assert result.kind == "serve"
    assert all(turn.completion_tokens == 8 for turn in result.runs[0].turns)
    assert all(80 < turn.prompt_tokens < 140 for turn in result.runs[0].turns)


def test_the_engine_alone(model: Path, tmp_path: Path) -> None:
    options = ["--batch", "1,2", "--repeats", "1", "--threads", "1", "--json", str(tmp_path / "a.json")]
    assert run(["bench", "decode", str(model), "--context", "20", "--tokens", "8", *options]) == 0
    decode = read(tmp_path / "a.json")
    assert [len(one.turns) for one in decode.runs] == [1, 2]
    assert all(turn.completion_tokens == 8 for turn in decode.runs[0].turns)
    assert run(["bench", "prefill", str(model), "--context", "100", *options]) == 0
    [one, _] = read(tmp_path / "a.json").runs
    assert figures(one, 1, 0).computed_per_minute == pytest.approx(100 * 60 / one.seconds)


def test_a_sweep_says_what_to_deploy(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--concurrency", "1", "--floor", "0.01", "--folder", str(tmp_path / "f")]
    assert run(["sweep", str(model), "--try", "depth=1", "--try", "max-sequences=4,0", *options]) == 0
    said = capsys.readouterr()
    assert f"tsrun serve {model} --depth 1 --max-sequences 4" in said.out
    assert "did not start" in said.err
    assert [file.name for file in (tmp_path / "f").iterdir()] == ["00.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "agentic", "--url", "ftp://x"], "no address of a server"),
        (["bench", "agentic", "--concurrency", "1,x"], "no list of numbers"),
        (["bench", "agentic", "--concurrency", "0"], "more than 0"),
        (["bench", "serve", "--prompt-tokens", "5", "--shared-tokens", "5"], "--shared-tokens"),
        (["bench", "compare"], "no results"),
        (["sweep", "m.tsa", "--try", "quantize=int8"], "compiled already"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1


def test_nobody_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run(["bench", "agentic", "--url", f"http://127.0.0.1:{port}"]) == 3
    assert "does not answer" in capsys.readouterr().err


def test_a_server_that_is_measured_for_long_goes_on(model: Path) -> None:
    """It writes a line for each request, more than a pipe holds that nobody reads."""
    with served(model, ["--threads", "1"]) as url, httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(300):
            asked = {"model": "toy", "prompt": "a", "max_tokens": 1}
            assert client.post("/v1/completions", json=asked, headers={"x-request-id": "x" * 120}).status_code == 200
