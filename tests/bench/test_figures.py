"""Figures, fronts and choices, of results that were written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tsrun.bench.compare import compare, differences, points
from tsrun.bench.records import FORMAT, ClientCost, Result, Run, TurnRecord, read, write
from tsrun.bench.report import markdown, rows
from tsrun.bench.summary import Spread, figures, quantile
from tsrun.bench.sweep import Choice, best, choices, deployment
from tsrun.errors import InputError, MachineError, TsrunError, UsageError

COST = ClientCost(0.02, 0.1, 0.4, 1.0)


def turn(**changes: Any) -> TurnRecord:
    """Ten tokens after the first in a second."""
    given: dict[str, Any] = {"user": 0, "session": 0, "turn": 0, "sent": 0.0, "ended": 2.0, "first": 0.5, "last": 1.0, "gaps": [0.1] * 10}
    given |= {"prompt_tokens": 100, "completion_tokens": 11, "cached_tokens": 60, "eligible": 80, "status": 200}
    return TurnRecord(**{**given, **changes})


def run(*turns: TurnRecord, **changes: Any) -> Run:
    return Run(**{"concurrency": 1, "rate": None, "repeat": 0, "seconds": 30.0, "turns": list(turns), "client": COST, **changes})


def result(label: str, *runs: Run, **changes: Any) -> Result:
    return Result(
        **{
            "format": FORMAT,
            "kind": "agentic",
            "label": label,
            "model": "m",
            "devices": 1,
            "how": {"seed": 0},
            "machine": {},
            "runs": list(runs),
            **changes,
        }
    )


def test_what_was_computed_and_what_was_found_are_apart() -> None:
    found = figures(run(turn(), turn(user=1, last=0.5)), devices=2, floor=15.0)
    assert found.user_tps == 15.0  # of 10 and 20
    assert found.output_per_minute == 22  # in half a minute by two devices
    assert (found.computed_per_minute, found.cached_per_minute) == (80, 120)
    assert (found.cached_share, found.hit_share) == (0.6, 0.75)
    assert found.goodput == 11  # the faster one's


def test_a_user_is_as_fast_as_all_of_its_answers_together() -> None:
    assert figures(run(turn(), turn(completion_tokens=31, last=1.0)), 1, 0).user_tps == 20


def test_what_was_broken_off_has_no_speed_and_refused_requests_are_no_failures() -> None:
    hostile = turn(status=400, error="no schema", hostile="schema", completion_tokens=0, first=None)
    found = figures(run(turn(), turn(cancelled=True), hostile, turn(status=0, error="gone")), 1, 0)
    assert (found.turns, found.cancelled, found.refused, found.failed) == (2, 1, 1, 1)
    assert found.user_tps == 10
    assert found.output_per_minute == 44


def test_what_a_server_does_not_say_is_not_known() -> None:
    found = figures(run(turn(cached_tokens=None)), 1, 0)
    assert found.cached_share is found.hit_share is found.computed_per_minute is None
    assert "cached, % of prompts" not in rows(result("a", run(turn(cached_tokens=None))), 0)[0]


def test_quantiles_are_values() -> None:
    assert [quantile([3, 1, 2, 4], part) for part in (0.01, 0.25, 0.5, 0.51, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert quantile([], 0.5) is None


def test_repeats_are_a_median_and_a_range() -> None:
    repeats = [run(turn(last=last), repeat=n) for n, last in enumerate((1.0, 0.5, 2.0))]
    table = rows(result("a", *repeats), 0)
    assert table[1][:2] == ["1 user", "10 (5-20)"]
    assert markdown(table).splitlines()[2].startswith("| 1 user | 10 (5-20) |")
    assert Spread.of([None, 2.0]) == Spread(2.0, 2.0, 2.0)


def test_the_front_has_what_nothing_beats_in_both() -> None:
    a = result("a", run(turn(last=0.1), seconds=60.0), run(turn(), turn(), concurrency=2, seconds=60.0))
    b = result("b", run(turn(last=0.2), seconds=60.0), run(turn(last=0.5), turn(), concurrency=2, seconds=30.0))
    assert [(p.label, p.load[0], p.on_front) for p in points([a, b], 0)] == [
        ("a", 1, True),
        ("a", 2, False),
        ("b", 1, False),
        ("b", 2, True),
    ]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = result("a", run(turn(), turn(hostile="nonce")))
    write(made, tmp_path / "a.json")
    assert read(tmp_path / "a.json") == made
    with pytest.raises(TsrunError, match="folder that is there"):
        write(made, tmp_path / "none" / "a.json")


@pytest.mark.parametrize(
    ("content", "says"), [(b"{}", "is no result"), (b"\xff", "is no result"), (None, "can not be read"), ("old", "has the format")]
)
def test_what_is_no_result_is_refused(content: bytes | str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    if content == "old":
        file.write_bytes(msgspec.json.encode(result("a", format="tsrun-bench/0")))
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read(file)
    assert caught.value.exit_code == 1


def test_a_comparison_says_what_was_not_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(result("a", run(turn())), tmp_path / "a.json")
    write(result("b", run(turn()), how={"seed": 1}), tmp_path / "b.json")
    compare([tmp_path / "a.json", tmp_path / "b.json"], None, 70)
    said = capsys.readouterr()
    assert "not the same sessions: seed" in said.err
    assert "on the front: a, 1 user" in said.out
    assert differences([result("a"), result("b", kind="serve")]) == "kind"
    with pytest.raises(UsageError, match="label"):
        compare([tmp_path / "a.json", tmp_path / "a.json"], None, 70)
    with pytest.raises(UsageError, match="png"):
        compare([tmp_path / "a.json"], tmp_path / "a.gif", 70)


def test_a_page_has_everything_in_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write(result("<a>", run(turn()), run(turn(), concurrency=2)), tmp_path / "a.json")
    compare([tmp_path / "a.json"], tmp_path / "a.html", 70)
    page = (tmp_path / "a.html").read_text()
    assert "<svg" in page
    assert "&lt;a&gt;" in page
    assert "src=" not in page
    compare([tmp_path / "a.json"], tmp_path / "a.png", 70)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_a_picture_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    write(result("a", run(turn())), tmp_path / "a.json")
    with pytest.raises(MachineError, match=r"tsc-llm\[bench\]"):
        compare([tmp_path / "a.json"], tmp_path / "a.png", 70)


def test_all_combinations_are_tried_or_one_change_at_a_time() -> None:
    tried = ("depth=1,2", "speculate=off,lookup", "mesh=tp=1|kv=2,q=2")
    assert len(choices(tried, one_by_one=False)) == 8
    assert [choice.label for choice in choices(tried, one_by_one=True)] == [
        "depth=1 speculate=off mesh=tp=1",
        "depth=2 speculate=off mesh=tp=1",
        "depth=1 speculate=lookup mesh=tp=1",
        "depth=1 speculate=off mesh=kv=2,q=2",
    ]


@pytest.mark.parametrize("given", [["depth"], ["depth="], ["=1"], ["depth=1", "depth=2"], ["screen=maybe"]])
def test_what_can_not_be_tried_is_refused(given: list[str]) -> None:
    with pytest.raises(UsageError, match="--try"):
        choices(given, one_by_one=False)


def test_the_best_is_the_load_with_most_tokens_at_the_floor() -> None:
    choice = Choice((("quantize", "int8"), ("depth", "1"), ("screen", "off"), ("prefix-cache", "on")))
    slow = run(*(turn(last=2.0) for _ in range(9)), concurrency=4)
    fast = run(*(turn() for _ in range(4)), concurrency=2)
    found = best(choice, result("x", run(turn()), fast, slow), floor=8.0)
    assert (found.load, found.slow_tps) == ((2, None), 10.0)
    assert best(choice, result("x", slow), floor=8.0).load is None
    assert list(deployment(Path("models/m.gguf"), choice)) == [
        "tsc compile models/m.gguf --quantize int8 -o m.tsa",
        "tsrun serve m.tsa --depth 1 --no-screen",
    ]
