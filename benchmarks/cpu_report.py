"""The figures of `benchmarks/cpu.py` as tables and as plots."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpu_cases import GOALS, MODELS, Case, Figure
from cpu_measure import Turn
from cpu_noise import Noise
from cpu_weights import Weights
from scheduler_report import number

NAMES = {"ours": "tsrun", "llama-cpp": "llama.cpp", "vllm": "vLLM"}


@dataclass
class Result:
    """Of one contender in one case: a turn a round, or why there are none."""

    turns: list[Turn] = field(default_factory=list)
    noises: list[Noise] = field(default_factory=list)
    skipped: str = ""

    def values(self, figure: Figure) -> list[float]:
        return [turn.figures[figure.key] for turn in self.turns]

    def median(self, figure: Figure) -> float:
        return statistics.median(self.values(figure))


@dataclass
class Measured:
    """A model: results by case and contender, and the roofs seen in the rounds between."""

    weights: Weights
    cases: Sequence[Case]
    results: dict[str, dict[str, Result]] = field(default_factory=dict)
    roofs: list[dict[str, float]] = field(default_factory=list)

    def figures(self) -> Iterator[tuple[Case, Figure, Mapping[str, Result]]]:
        for case in self.cases:
            if case.name in self.results:  # unless it was stopped before
                for figure in case.figures:
                    yield case, figure, self.results[case.name]

    def roof(self, case: Case, figure: Figure) -> float | None:
        """What nobody can be above here, in the figure's unit."""
        if not self.roofs or figure.roof is None:
            return None
        seen = {name: statistics.median(roof[name] for roof in self.roofs) for name in self.roofs[0]}
        if figure.roof == "bandwidth":
            return seen["bandwidth"] / self.weights.read_bytes * case.sequences
        if self.weights.name == "gguf":
            return None  # 8-bit products, whose rate torch does not tell
        return max(seen["bf16"], seen["f32"]) / (2 * self.weights.multiplied(case.prompt))


def ratios(figure: Figure, ours: Result, peer: Result) -> list[float]:
    """How many times as good ours is, round by round: the rounds of both were measured in turn."""
    pairs = zip(ours.values(figure), peer.values(figure), strict=False)
    return [mine / other if figure.rises else other / mine for mine, other in pairs]


def same_tokens(ours: Result, peer: Result) -> list[int]:
    """Of each sequence, how many tokens are the same before the first that differs."""
    lengths = []
    for mine, other in zip(ours.turns[-1].tokens, peer.turns[-1].tokens, strict=True):
        same = 0
        while same < min(len(mine), len(other)) and mine[same] == other[same]:
            same += 1
        lengths.append(same)
    return lengths


def rows(measured: Measured, contenders: Sequence[str]) -> list[list[str]]:
    peers = [name for name in contenders if name != "ours"]
    found = [[MODELS[measured.weights.name], "unit", "goal", "roof", "tsrun", "of roof"]]
    for peer in peers:
        found[0] += [NAMES[peer], "of roof", "tsrun is", "same tokens"]
    for case, figure, by_contender in measured.figures():
        roof = measured.roof(case, figure)
        goal = GOALS.get((measured.weights.name, figure.key))
        cells = [figure.label, figure.unit, str(goal or ""), "" if roof is None else number(roof)]
        ours = by_contender["ours"]
        cells += _value(ours, figure, roof)
        for peer in peers:
            result = by_contender.get(peer, Result())
            cells += _value(result, figure, roof)
            both = ours.turns and result.turns
            cells.append(_spread(ratios(figure, ours, result)) if both else "")
            cells.append(_agreement(same_tokens(ours, result), case) if both and figure.tokens else "")
        found.append(cells)
    return found


def reached(measured: Measured) -> Iterator[tuple[str, bool]]:
    """Each goal that was measured, in words, and whether it was reached."""
    for _, figure, by_contender in measured.figures():
        goal = GOALS.get((measured.weights.name, figure.key))
        ours = by_contender["ours"]
        if goal is None or not ours.turns:
            continue
        label = f"{MODELS[measured.weights.name]}: {figure.label.strip()}"
        if goal.limit is not None:
            yield f"{label}: {number(ours.median(figure))} {figure.unit}, goal {goal}", ours.median(figure) <= goal.limit
            continue
        found = {
            NAMES[name]: statistics.median(ratios(figure, ours, result))
            for name, result in by_contender.items()
            if name != "ours" and result.turns and goal.peer in (None, NAMES[name])
        }
        if found and goal.ratio is not None:
            best = min(found, key=lambda name: found[name])
            yield f"{label}: {found[best]:.2f}x {best}, goal {goal}", found[best] >= goal.ratio


def as_json(measured: Measured) -> dict[str, Any]:
    """Every turn, with what else ran meanwhile."""
    cases: dict[str, Any] = {}
    for case in measured.cases:
        by_contender = measured.results.get(case.name, {})
        ours = by_contender.get("ours", Result())
        cases[case.name] = {}
        for name, result in by_contender.items():
            if not result.turns:
                cases[case.name][name] = {"skipped": result.skipped or "stopped before"}
                continue
            cases[case.name][name] = said = {
                "figures": {
                    figure.key: {"unit": figure.unit, "median": result.median(figure), "rounds": result.values(figure)}
                    for figure in case.figures
                },
                "cores_of_idle_contenders": [noise.idle for noise in result.noises],
                "cores_of_others": [noise.others for noise in result.noises],
            }
            if name != "ours" and ours.turns:
                said["tsrun_is"] = {figure.key: ratios(figure, ours, result) for figure in case.figures}
                if any(figure.tokens for figure in case.figures):
                    said["same_tokens"] = same_tokens(ours, result)
    roofs = {figure.key: measured.roof(case, figure) for case, figure, _ in measured.figures() if figure.roof}
    return {"read_bytes": measured.weights.read_bytes, "roofs": roofs, "roof_rounds": measured.roofs, "cases": cases}


def plot(path: Path, models: Sequence[Measured], contenders: Sequence[str]) -> str | None:
    """Tokens a second against batch and against context, each a picture beside PATH; why not, if not."""
    try:
        import matplotlib
    except ImportError as missing:
        return f"{missing} (pip install matplotlib)"
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    for free, title in (
        ("batch", "sequences, each 129 tokens and 64 more"),
        ("context", "tokens of the one sequence at its end"),
    ):
        shown = [measured for measured in models if any(case.scaling == free for case in measured.cases)]
        if not shown:
            continue
        figure, axes = pyplot.subplots(1, len(shown), figsize=(5.5 * len(shown), 4.5), squeeze=False)
        for axis, measured in zip(axes[0], shown, strict=True):
            cases = [case for case in measured.cases if case.scaling == free and case.name in measured.results]
            sizes = [case.sequences if free == "batch" else case.prompt + case.new_tokens for case in cases]
            for contender in contenders:
                points = [
                    (size, result.median(case.figures[0]), min(values), max(values))
                    for size, case in zip(sizes, cases, strict=True)
                    if (result := measured.results[case.name].get(contender)) and (values := result.values(case.figures[0]))
                ]
                if points:
                    x, middle, least, most = zip(*points, strict=True)
                    (line,) = axis.plot(x, middle, marker="o", label=NAMES[contender])
                    axis.fill_between(x, least, most, color=line.get_color(), alpha=0.2)
            roofs = [measured.roof(case, case.figures[0]) for case in cases]
            if None not in roofs and free == "context":  # a batch soon multiplies more than it reads
                axis.plot(sizes, roofs, "--", color="gray", label="weights read once a token")
            axis.set(xscale="log", yscale="log" if free == "batch" else "linear", xlabel=title, title=MODELS[measured.weights.name])
            if free == "context":
                axis.set_ylim(bottom=0)
            else:
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("tokens a second, all sequences together")
        axes[0][0].legend()
        figure.tight_layout()
        figure.savefig(path.with_stem(f"{path.stem}_{free}"), dpi=150)
    return None


def _value(result: Result, figure: Figure, roof: float | None) -> list[str]:
    if not result.turns:
        return ["-", ""]
    middle = result.median(figure)
    return [number(middle), "" if roof is None else f"{100 * middle / roof:.0f} %"]


def _spread(found: Sequence[float]) -> str:
    middle, least, most = (f"{value:.2f}" for value in (statistics.median(found), min(found), max(found)))
    return f"{middle}x ({least}-{most})"


def _agreement(lengths: Sequence[int], case: Case) -> str:
    if len(lengths) == 1:
        return f"{lengths[0]} of {case.new_tokens}"
    return f"{min(lengths)}-{max(lengths)} of {case.new_tokens}"
