"""The memory plan, checked on the emitted program by brute force: no two values that are alive at once overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from tests.passes.test_golden import CASES
from tests.passes.tiny_models import CONFIGS, stages

from tsc.graph_parser import parse_program
from tskernels.dtypes import size_bytes
from tskernels.registry import lookup
from tspasses.emit import emit


@dataclass
class Buffer:
    """What one node of one call writes: bytes of a row of its region, and the events at which it is written and read."""

    name: str
    region: str
    begin: int
    end: int
    written: int = -1
    read: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        return max([self.written, *self.read])

    def clashes(self, other: Buffer) -> bool:
        # at the event that reads one and writes the other, both are alive
        alive_at_once = self.written <= other.last and other.written <= self.last
        return self.region == other.region and self.begin < other.end and other.begin < self.end and alive_at_once


class Run:
    """One walk over a program with its calls inlined, as the runtime binds it: every node that computes is an event."""

    def __init__(self, program: Mapping[str, Any]) -> None:
        self.program = program
        self.buffers: list[Buffer] = []
        self.events = 0
        result = self.graph(program["plans"][0]["entry"], {}, {"T": 0, "S": 0}, None, "")
        assert result is not None
        result.read.append(self.events)

    def graph(
        self, name: str, bound: Mapping[str, Buffer | None], frame: Mapping[str, int], target: Buffer | None, path: str
    ) -> Buffer | None:
        graph = self.program["graphs"][name]
        values: dict[str, Buffer | None] = {i["name"]: bound.get(i["name"]) for i in graph["inputs"]}
        for node in graph["nodes"]:
            place = target if node["name"] == graph["output"] else None
            args = [values[a] for a in node["args"]]
            if "call" in node:
                callee = self.program["graphs"][node["call"]]
                passed = dict(zip((i["name"] for i in callee["inputs"] if i["kind"] in ("value", "step", "coordinate")), args, strict=True))
                result = next(n for n in callee["nodes"] if n["name"] == callee["output"])
                place = place or self.buffer(f"{path}{node['name']}", node, result, frame)
                inner = {r: frame[r] + node["frame"][r] for r in frame}
                values[node["name"]] = self.graph(node["call"], passed, inner, place, f"{path}{node['name']}/")
                continue
            self.events += 1
            for arg in args:
                if arg is not None:
                    arg.read.append(self.events)
            if lookup(node["op"], node["kernel"]).kind in ("view", "inplace"):
                values[node["name"]] = args[0]
                if place is not None:  # the runtime copies a view to where the caller wants it
                    place.written = self.events
                    values[node["name"]] = place
            else:
                values[node["name"]] = place or self.buffer(f"{path}{node['name']}", node, node, frame)
                values[node["name"]].written = self.events  # type: ignore[union-attr]
        return values[graph["output"]]

    def buffer(self, name: str, node: Mapping[str, Any], result: Mapping[str, Any], frame: Mapping[str, int]) -> Buffer:
        rows, *row = result["shape"]
        region, _, ranks = rows.partition("/")  # `T/4`: of four tokens a row
        assert node["region"] == region
        assert node["offset"] % 64 == 0, f"{name} is not aligned"
        begin = frame[region] + node["offset"]
        made = Buffer(name, region, begin, begin + -(-math.prod(row) * size_bytes(result["dtype"]) // int(ranks or 1)))
        assert made.end <= self.program["plans"][0]["frame"][region], f"{name} ends outside of the frame"
        self.buffers.append(made)
        return made

    def clashes(self) -> list[tuple[str, str]]:
        return [(a.name, b.name) for a, b in combinations(self.buffers, 2) if a.clashes(b)]


def planned(model: str, ranks: int) -> dict[str, Any]:
    *_, (_, program) = stages(model, {"tp": ranks})
    return emit([(1, program)])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("model", sorted(CONFIGS))
def test_no_two_values_that_are_alive_at_once_overlap(model: str, ranks: int) -> None:
    run = Run(planned(model, ranks))
    assert len(run.buffers) > 15
    assert run.clashes() == []


@pytest.mark.parametrize("case", sorted((CASES / "plan-memory").glob("*.out")), ids=lambda p: p.stem)
def test_no_values_of_a_case_overlap(case: Any) -> None:
    # view_as_result: what a callee's view was of had no place, and so the first one, whoever else was there
    assert Run(emit([(1, parse_program(case.read_text(encoding="utf-8")))])).clashes() == []


def test_memory_is_used_again() -> None:
    program = planned("llama", 1)
    run = Run(program)
    assert program["plans"][0]["frame"]["T"] * 3 < sum(b.end - b.begin for b in run.buffers if b.region == "T")


def test_a_plan_with_everything_in_one_place_is_found_out() -> None:
    program = planned("llama", 2)
    for graph in program["graphs"].values():
        for node in graph["nodes"]:
            node["offset"] = 0
    assert ("x", "x_all_reduce") in Run(program).clashes()


def test_a_callee_in_its_callers_frame_is_found_out() -> None:
    program = planned("llama", 2)
    for node in program["graphs"][program["plans"][0]["entry"]]["nodes"]:
        if "call" in node:
            node["frame"] = {"T": 0, "S": 0}
    assert Run(program).clashes()
