"""Tables of results: a row for each load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table

from tsrun.bench.records import Result
from tsrun.bench.summary import Figures, Load, Spread, by_load, number, spread

COLUMNS: Final[Sequence[tuple[str, str, float]]] = (
    ("tokens/s a user", "user_tps", 1),
    ("slowest 10 %", "slow_tps", 1),
    ("output tokens/min", "output_per_minute", 1),
    ("computed/min", "computed_per_minute", 1),
    ("cached, % of prompts", "cached_share", 100),
    ("hits, % of what could be", "hit_share", 100),
    ("goodput/min", "goodput", 1),
    ("first token, ms", "first_p50", 1000),
    ("p90", "first_p90", 1000),
    ("gap p50, ms", "gap_p50", 1000),
    ("p99", "gap_p99", 1000),
    ("turn, s", "turn_p50", 1),
    ("J/token", "joules_per_token", 1),
)
"""Head, figure, and what it is multiplied with."""


def load_name(load: Load) -> str:
    users, rate = load
    return f"{users} user{'s' if users != 1 else ''}" if users is not None else f"{number(rate or 0.0)} sessions/min"


def rows(result: Result, floor: float) -> list[list[str]]:
    """The head and the rows; columns of which nothing is known are left out."""
    loads = by_load(result, floor)
    known = [(head, name, factor) for head, name, factor in COLUMNS if any(spread(repeats, name) is not None for repeats in loads.values())]
    table = [["load", *(head for head, _, _ in known), "turns", "failed", "client, % of a core"]]
    for load, repeats in loads.items():
        cores = [100 * run.client.core_share for run in result.runs if (run.concurrency, run.rate) == load]
        cells = [_cell(repeats, name, factor) for _, name, factor in known]
        turns, failed = (number(sum(getattr(one, name) for one in repeats)) for name in ("turns", "failed"))
        client = Spread.of(cores)
        table.append([load_name(load), *cells, turns, failed, "" if client is None else client.text()])
    return table


def _cell(repeats: Sequence[Figures], name: str, factor: float) -> str:
    found = spread(repeats, name)
    return "" if found is None else Spread(found.middle * factor, found.least * factor, found.most * factor).text()


def markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rest = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def aligned(title: str, table: Sequence[Sequence[str]]) -> Table:
    head, *rest = table
    made = Table(title=title, box=None, title_justify="left", padding=(0, 1))
    for index, column in enumerate(head):
        made.add_column(column, justify="left" if index == 0 else "right")
    for cells in rest:
        made.add_row(*cells)
    return made
