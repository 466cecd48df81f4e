"""The figures of `benchmarks/scheduler.py` as a table, as Markdown and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scheduler_cases import CASES, CPU, WALL, Entry, Figure, Goal, Samples, percentile

NAMES = {"ours": "tsrun", "tokenspeed": "tokenspeed", "vllm": "vLLM"}


@dataclass
class Result:
    """Of one contender in one case: the samples of each round, or why there are none."""

    rounds: list[Samples] = field(default_factory=list)
    skipped: str = ""

    def pooled(self) -> Samples:
        names = self.rounds[0]
        return {name: [[value for found in self.rounds for value in found[name][kind]] for kind in (WALL, CPU)] for name in names}

    def value(self, figure: Figure, time: int = WALL) -> float:
        if figure.of:
            return figure.value(self.pooled(), time)
        return statistics.median(figure.value(found, time) for found in self.rounds)


Results = Mapping[str, Mapping[str, Result]]  # by case, by contender


def ratios(figure: Figure, ours: Result, peer: Result) -> list[float]:
    """The peer's CPU time over ours, round by round: the rounds of both were measured in turn."""
    pairs = [(figure.value(mine, CPU), figure.value(other, CPU)) for mine, other in zip(ours.rounds, peer.rounds, strict=False)]
    return [other / mine for mine, other in pairs if mine > 0]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def times(found: Sequence[float]) -> str:
    if not found:
        return ""
    middle, least, most = (number(value) for value in (statistics.median(found), min(found), max(found)))
    return f"{middle}x ({least}-{most})"


def rows(results: Results, peers: Sequence[str]) -> list[list[str]]:
    """A row a figure; a peer without one has its reason in the notes."""
    found = [["", "unit", "goal", "tsrun", "p99", "min", "CPU", "its p99"]]
    for peer in peers:
        found[0] += [NAMES[peer], "CPU / tsrun's"]
    for entry in CASES:
        for figure in entry.figures if entry.name in results else []:
            found.append(row(entry, figure, results[entry.name], peers))
    return found


def row(entry: Entry, figure: Figure, by_contender: Mapping[str, Result], peers: Sequence[str]) -> list[str]:
    ours = by_contender["ours"]
    cells = [figure.label, figure.unit, "" if figure.goal is None else f"{figure.goal:g}"]
    if not ours.rounds:
        cells += ["-"] * 5
    elif figure.of and not figure.less:
        wall, cpu = ours.pooled()[figure.of]
        cells += [number(value) for value in (ours.value(figure), percentile(wall), min(wall), statistics.median(cpu), percentile(cpu))]
    else:
        cells += [number(ours.value(figure)), "", "", number(ours.value(figure, CPU)), ""]
    for peer in peers:
        result = by_contender.get(peer, Result())
        compared = ours.rounds and result.rounds and not figure.less  # a difference may be near nothing, and its ratio is noise
        cells.append(number(result.value(figure)) if result.rounds else "-")
        cells.append(times(ratios(figure, ours, result)) if compared else "")
    return cells


def aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in table
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line(table[0]), line(["---"] + ["---:"] * (len(table[0]) - 1)), *map(line, table[1:])])


def goal_rows(goals: Sequence[Goal]) -> list[list[str]]:
    found = [["goals of tsrun", "unit", "goal", "found"]]
    for goal in goals:
        found.append([goal.label, goal.unit, f"{goal.goal:g}", f"{goal.value:.2f}" if abs(goal.value) < 10 else number(goal.value)])
    return found


def plot(path: Path, results: Results, contenders: Sequence[str]) -> str | None:
    """Microseconds a step against sequences, and against context; why not, if not."""
    try:
        import matplotlib
    except ImportError:
        return "matplotlib is not installed (pip install matplotlib)"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (by_running, by_context) = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    decodes = [entry for entry in CASES if entry.name.startswith("decode-")]
    for axes, fixed, free, title in (
        (by_running, "context", "running", "sequences decoding, 8,192 tokens each"),
        (by_context, "running", "context", "tokens of each of 256 sequences"),
    ):
        held = 8192 if fixed == "context" else 256
        for contender in contenders:
            points = [
                (getattr(entry.case, free), result.value(entry.figures[0]))
                for entry in decodes
                if getattr(entry.case, fixed) == held and (result := results.get(entry.name, {}).get(contender)) and result.rounds
            ]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), marker="o", label=NAMES[contender])
        axes.set(xscale="log", yscale="log", xlabel=title)
        ticks = sorted({getattr(entry.case, free) for entry in decodes if getattr(entry.case, fixed) == held})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    by_running.set_ylabel("µs a step: plan, read, outcome, commit")
    by_running.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    return None
