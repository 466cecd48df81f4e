"""`tsrun bench compare`: several results as one table and one picture, the front of what users get and what the device does."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tsrun.bench.records import Result, read
from tsrun.bench.report import aligned, load_name, rows
from tsrun.bench.summary import Figures, Load, Spread, by_load, spread
from tsrun.errors import MachineError, TsrunError, UsageError

_PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><title>tsrun bench</title><style>
body {{ font: 14px sans-serif; margin: 2em }}
td, th {{ padding: 2px 10px; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
svg {{ max-width: 100% }}
</style></head><body>
{picture}
{tables}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One load of one configuration; on_front: no other point has more of both."""

    label: str
    load: Load
    users: Spread
    device: Spread
    on_front: bool = False


def points(results: Sequence[Result], floor: float) -> list[Point]:
    """Those at which both are known, with the front marked."""
    found = [
        Point(result.label, load, users, device)
        for result in results
        for load, repeats in by_load(result, floor).items()
        if (users := spread(repeats, "user_tps")) is not None and (device := spread(repeats, "output_per_minute")) is not None
    ]

    def beaten(point: Point) -> bool:
        return any(
            other is not point
            and other.users.middle >= point.users.middle
            and other.device.middle >= point.device.middle
            and (other.users.middle, other.device.middle) != (point.users.middle, point.device.middle)
            for other in found
        )

    return [Point(p.label, p.load, p.users, p.device, not beaten(p)) for p in found]


def compare(files: Sequence[Path], plot: Path | None, floor: float) -> None:
    """The command. Raises UsageError where results do not compare."""
    results = [read(file) for file in files]
    labels = [result.label for result in results]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UsageError("compare", f"two results have the label {twice!r}", "run one of them with another --label")
    differ = differences(results)
    console = Console(width=240 if not sys.stdout.isatty() else None)
    for result in results:
        console.print(aligned(f"{result.label} ({result.model})", rows(result, floor)))
    for point in points(results, floor):
        if point.on_front:
            console.print(f"on the front: {point.label}, {load_name(point.load)}", highlight=False)
    if differ:
        print(f"note: these were not the same sessions: {differ}", file=sys.stderr)
    if plot is not None:
        draw(results, plot, floor)


def differences(results: Sequence[Result]) -> str:
    """In which of the options that sessions follow from they differ; empty where in none."""
    first, *others = results
    names = [name for name in first.how if any(other.how.get(name) != first.how[name] for other in others)]
    return ", ".join([*(["kind"] if len({result.kind for result in results}) > 1 else []), *names])


def draw(results: Sequence[Result], file: Path, floor: float) -> None:
    """A PNG, or one HTML file that needs nothing else. Raises MachineError without matplotlib."""
    if file.suffix not in (".png", ".html"):
        raise UsageError("--plot", f"{file} is neither a picture nor a page", "end its name in .png or .html")
    figure = _figure(results, floor)
    try:
        if file.suffix == ".png":
            figure.savefig(file, dpi=120)
        else:
            file.write_text(_page(figure, results, floor), encoding="utf-8")
    except OSError as error:
        raise TsrunError(str(file), f"can not be written ({error.strerror})", "name a file in a folder that is there") from None


def _figure(results: Sequence[Result], floor: float) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError:
        raise MachineError("--plot", "matplotlib is missing", "pip install 'tsc-llm[bench]'") from None
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    front, first = figure.subplots(1, 2)
    found = points(results, floor)
    for result in results:
        mine = [point for point in found if point.label == result.label]
        _front(front, result.label, mine)
        _first_tokens(first, result.label, by_load(result, floor))
    front.axvline(floor, color="grey", linewidth=0.8, linestyle=":")
    front.set(xlabel="tokens per second of a user", ylabel="output tokens per minute of a device", xlim=(0, None), ylim=(0, None))
    front.set_title("What users get, and what the device does (circled: the front)", fontsize=10)
    first.set(ylabel="seconds to the first token (median; dashed: 90 of 100)", yscale="log")
    first.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    first.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    first.yaxis.set_minor_formatter(NullFormatter())
    first.set_xlabel("users" if any(run.concurrency for result in results for run in result.runs) else "sessions a minute")
    first.set_title("Waiting", fontsize=10)
    for axes in (front, first):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _front(axes: Any, label: str, mine: Sequence[Point]) -> None:
    x, y = [p.users.middle for p in mine], [p.device.middle for p in mine]
    spans = [[[p.users.middle - p.users.least for p in mine], [p.users.most - p.users.middle for p in mine]]]
    spans.append([[p.device.middle - p.device.least for p in mine], [p.device.most - p.device.middle for p in mine]])
    line = axes.errorbar(x, y, xerr=spans[0], yerr=spans[1], marker="o", capsize=2, linewidth=1.2, elinewidth=0.8, label=label)
    for point in mine:
        users, rate = point.load
        axes.annotate(
            f"{users if users is not None else rate}",
            (point.users.middle, point.device.middle),
            (5, 5),
            textcoords="offset points",
            fontsize=8,
        )
        if point.on_front:
            axes.plot(point.users.middle, point.device.middle, "o", markersize=12, fillstyle="none", color=line[0].get_color())


def _first_tokens(axes: Any, label: str, loads: Mapping[Load, Sequence[Figures]]) -> None:
    x = [users if users is not None else rate for users, rate in loads]
    middle = [spread(repeats, "first_p50") for repeats in loads.values()]
    late = [spread(repeats, "first_p90") for repeats in loads.values()]
    known = [(at, m, p) for at, m, p in zip(x, middle, late, strict=True) if m is not None and p is not None]
    if not known:
        return
    at = [a for a, _, _ in known]
    [line] = axes.plot(at, [m.middle for _, m, _ in known], marker="o", label=label)
    axes.fill_between(at, [m.least for _, m, _ in known], [m.most for _, m, _ in known], alpha=0.2, color=line.get_color())
    axes.plot(at, [p.middle for _, _, p in known], linestyle="--", linewidth=0.9, color=line.get_color())


def _page(figure: Any, results: Sequence[Result], floor: float) -> str:
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]
    parts = []
    for result in results:
        head, *rest = rows(result, floor)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rest)
        heads = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        how = ", ".join(f"{name} {value}" for name, value in result.how.items() if value is not None)
        said = html.escape(f"{how}; {', '.join(result.machine.values())}")
        parts.append(
            f"<h2>{html.escape(result.label)} ({html.escape(result.model)})</h2><table><tr>{heads}</tr>{body}</table><p>{said}</p>"
        )
    return _PAGE.format(picture=svg, tables="".join(parts))
