"""docs/scheduler.md shows the states of a request as the scheduler was compiled with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsrun._core import Scheduler
from tsrun.cli import run
from tsrun.scheduler_page import BEGIN, END, states

PAGE = Path(__file__).parents[2] / "docs" / "scheduler.md"


def test_the_page_of_the_scheduler_has_the_states_of_the_code(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    found, _, after = rest.partition(END + "\n")
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + states() + after, encoding="utf-8")
        return
    assert BEGIN + found + END + "\n" == states(), f"{PAGE} differs; run with --update-golden and review the diff"


def test_the_diagram_has_every_edge_once() -> None:
    lines = states().splitlines()
    for state, event, after, meaning in Scheduler.transitions():
        arrows = [line for line in lines if line.startswith(f"    {state} --> ") and event in line.partition(": ")[2].split(", ")]
        assert [arrow.split()[2].rstrip(":") for arrow in arrows] == [after][: bool(after)]
        assert lines.count(f"| `{state}` | `{event}` | `{after}` | {meaning} |") == bool(after)


def test_every_event_that_never_comes_has_its_reason() -> None:
    assert all(text for _, _, _, text in Scheduler.transitions())


def test_explain_prints_the_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "scheduler"]) == 0
    assert capsys.readouterr().out == states()
