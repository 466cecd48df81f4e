"""The cases of `benchmarks/scheduler.py`: what each measures, and what is hoped for of ours."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scheduler_measure import Case

Samples = Mapping[str, Sequence[Sequence[float]]]  # by series: wall, CPU; microseconds
WALL, CPU = 0, 1
PROMPT, CACHED = 80 * 1024, 76 * 1024  # 95 % of the long prompt's tokens are in the cache
ROUNDS, QUICK_ROUNDS = 5, 2
OURS_STEPS, PEER_STEPS, QUICK_STEPS = 240, 60, 5  # of a round


@dataclass(frozen=True)
class Figure:
    """A number of a case: the median of a series, or by how much it exceeds the median of another, or a round's whole time."""

    label: str
    of: str = ""
    less: str = ""
    goal: float | None = None  # of ours, in the unit
    unit: str = "us"

    def value(self, samples: Samples, time: int = WALL) -> float:
        if not self.of:
            return sum(sum(both[time]) for both in samples.values()) / 1e3
        value = statistics.median(samples[self.of][time])
        return value - statistics.median(samples[self.less][time]) if self.less else value


@dataclass(frozen=True)
class Entry:
    name: str
    case: Case
    figures: Sequence[Figure]
    quick: Mapping[str, Any]  # the sizes that --quick changes

    def sized(self, ours: bool, quick: bool) -> Case:
        rounds = QUICK_ROUNDS if quick else ROUNDS
        steps = QUICK_STEPS if quick else OURS_STEPS if ours else PEER_STEPS
        return replace(self.case, rounds=rounds, steps=min(self.case.steps or steps, steps), **(self.quick if quick else {}))


def decode(running: int, context: int, goal: float) -> Entry:
    figures = [Figure(f"decode, {running:,} x {context:,} tokens", "step", goal=goal)]
    return Entry(f"decode-{running}-{context}", Case("decode", running, context, 0, 0), figures, {"running": 4, "context": 256})


def variant(name: str, label: str, kind: str = "decode", **sizes: Any) -> Entry:
    figures = [Figure(f"{label}, 256 x 8,192 tokens", "step")]
    return Entry(name, Case(kind, 256, 8192, 0, 0, **sizes), figures, {"running": 4, "context": 256})


CASES = (
    decode(64, 8192, 25),
    decode(64, 65536, 25),
    decode(256, 1024, 60),
    decode(256, 8192, 60),
    decode(256, 65536, 60),
    decode(1024, 1024, 200),
    decode(1024, 8192, 200),
    Entry(
        "hashing",
        Case("hashing", 64, 0, 20, 0, prompt=PROMPT),
        [
            Figure("submit 81,920 tokens", "submit"),
            Figure("hashing them for the prefix cache", "submit", "submit, no cache", goal=100),
        ],
        {"prompt": 1024},
    ),
    Entry(
        "admission",
        Case("admission", 64, 8192, 10, 0, prompt=PROMPT, shared=CACHED),
        [Figure("admit 81,920 tokens, 95 % cached", "plan, admitting", "plan", goal=150)],
        {"running": 4, "context": 256, "prompt": 1024, "shared": 896},
    ),
    Entry(
        "abort",
        Case("abort", 256, 8192, 0, 0),
        [Figure("abort one of 256 x 8,192 tokens", "abort", goal=5)],
        {"running": 4, "context": 256},
    ),
    Entry(
        "waiting",
        Case("waiting", 64, 8192, 0, 0, requests=10_000, prompt=128),
        [
            Figure("decode, 64 x 8,192 tokens, 10,000 wait", "step, others wait"),
            Figure("what the 10,000 cost a step", "step, others wait", "step", goal=0),
        ],
        {"running": 4, "context": 256, "requests": 100},
    ),
    Entry(
        "admission-storm",
        Case("admission storm", 256, 0, 0, 0, requests=1000, prompt=2048, shared=1536),
        [
            Figure("admission storm, in all", unit="ms"),
            Figure("admission storm, a step", "step"),
            Figure("admission storm, a submit", "submit"),
        ],
        {"running": 4, "requests": 20, "prompt": 256, "shared": 192},
    ),
    Entry(
        "eviction-storm",
        Case("eviction storm", 8, 0, 0, 0, requests=64, prompt=4096, turn=256),
        [
            Figure("eviction storm, in all", unit="ms"),
            Figure("eviction storm, a step", "step"),
            Figure("eviction storm, a submit", "submit"),
        ],
        {"running": 2, "requests": 16, "prompt": 512},
    ),
    Entry(
        "cancels",
        Case("cancels", 256, 256, 0, 0, prompt=256),
        [Figure("10 % cancels a step, 256 running", "step")],
        {"running": 10, "context": 64, "prompt": 64},
    ),
    variant("drafts", "3 drafts, 1-4 tokens taken", drafts=3),
    variant("hybrid", "full, window, state groups", hybrid=True),
    variant("depth-2", "depth 2", kind="overlapped", depth=2),
)


@dataclass(frozen=True)
class Goal:
    """A goal of ours that no single figure has."""

    label: str
    value: float
    goal: float
    unit: str


def goals(ours: Mapping[str, Samples]) -> list[Goal]:
    """From the pooled samples of each case."""
    found = []
    for entry in CASES:
        samples = ours.get(entry.name)
        if samples is None:
            continue
        found += [Goal(f.label, f.value(samples), f.goal, f.unit) for f in entry.figures if f.goal is not None]
        if entry.case.kind == "decode" and entry.name.startswith("decode"):
            own = samples["step"][CPU]  # where others use the machine too, one step in a hundred is interrupted by them
            found.append(Goal(f"p99 / median, CPU: {entry.figures[0].label}", percentile(own) / statistics.median(own), 3, "x"))
    far, near = ours.get("decode-256-65536"), ours.get("decode-256-8192")
    if far and near:
        step = CASES[0].figures[0]
        page = (step.value(far) - step.value(near)) * 1e3 / (256 * (65536 - 8192) / 64)
        found.append(Goal("a page of context: 256 x 65,536 less 256 x 8,192 tokens", page, 1, "ns"))
    return found


def percentile(values: Sequence[float], fraction: float = 0.99) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]
