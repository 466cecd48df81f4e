"""Weights that are kept quantized: the programs of one artifact agree on them, and what else reads them keeps them as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.passes.made_up_kernels import MADE_UP, made_up_kernels

from tsc.graph import Program
from tsc.graph_parser import parse_program
from tsc.graph_text import print_program
from tsc.weights import stored_weights
from tskernels.target import CPU
from tspasses.keep_formats import KeepFormats
from tspasses.pipeline import StoragePass, passes
from tspasses.verify import verify

LAYERS = (Path(__file__).parent / "cases" / "keep-formats" / "layers.in").read_text(encoding="utf-8")
DOWN = {f"{i}.down": "q8_0" if i % 2 else "q4_0" for i in range(4)}
UP = {f"{i}.up": "q4_0" for i in range(4)}


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with made_up_kernels():
        yield


def layouts(program: Program) -> dict[str, str]:
    return {w.name: w.layout for w in stored_weights(program)}


def test_a_graph_serves_the_calls_whose_weights_are_stored_alike() -> None:
    program = KeepFormats(MADE_UP, DOWN | UP).run(parse_program(LAYERS))
    verify(program, "keep-formats")
    assert list(program.graphs) == ["Layer", "Layer_b", "main"]
    calls = [n.meta["call"] for n in program.graphs["main"].nodes if n.op == "call_module"]
    assert [c.graph for c in calls] == ["Layer", "Layer_b", "Layer", "Layer_b"]
    assert {name: layouts(program)[name] for name in DOWN | UP} == DOWN | UP
    same = KeepFormats(MADE_UP, UP).run(parse_program(LAYERS))
    assert list(same.graphs) == ["Layer", "main"]


def test_nothing_changes_without_kernels_or_wishes() -> None:
    before = print_program(parse_program(LAYERS))
    assert print_program(KeepFormats(MADE_UP).run(parse_program(LAYERS))) == before
    assert print_program(KeepFormats(CPU, DOWN).run(parse_program(LAYERS))) == before
    assert print_program(KeepFormats(MADE_UP, {"head": "q4_k", "0.down": "q4_k"}).run(parse_program(LAYERS))) == before  # blocks of 256


def test_plans_keep_what_all_of_them_can_read() -> None:
    other = LAYERS.replace("  %rows =", "  %more = ts.add(%head, %head) : f32[V, D]\n  %rows =")
    step = KeepFormats(MADE_UP, {"head": "q8_0", "table": "q8_0"})
    assert layouts(step.run(parse_program(LAYERS)))["head"] == "q8_0"
    agreed = step.agree([parse_program(LAYERS), parse_program(other)])
    found = [layouts(agreed.run(parse_program(t))) for t in (LAYERS, other)]
    assert found[0] == found[1]
    assert (found[0]["head"], found[0]["table"]) == ("rows", "q8_0")


def test_a_quantized_program_goes_through_all_passes_and_its_text() -> None:
    program = parse_program(LAYERS)
    for step in passes(MADE_UP, formats=DOWN | UP | {"table": "q8_0", "head": "q4_0"}):
        program = (step.agree([program]) if isinstance(step, StoragePass) else step).run(program)
        verify(program, step.name)
        assert print_program(parse_program(print_program(program))) == print_program(program)
    found = {n.meta["kernel"] for g in program.graphs.values() for n in g.nodes if n.op == "call_function"}
    assert {"q4_0", "q8_0"} < found
