"""Text in, text out: what placing, lowering and each pass make of small programs. `--update-golden` rewrites what is expected.

A case of a pass is a program's text (`.in`); one of `place` or `lower` is a model file (`.ts`) whose comment `// mesh: tp=2` says for
how many ranks. `.out` beside it is what must come out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.passes.made_up_kernels import MADE_UP, made_up_kernels
from tests.passes.placed_text import print_placed

from tsc.front import parse_mesh, place_model, read_model
from tsc.graph_parser import parse_program
from tsc.graph_text import print_program
from tskernels.cache_layouts import INT8_CACHE
from tspasses.lower import lower
from tspasses.pipeline import passes
from tspasses.placed import Options, PlacedModel
from tspasses.verify import verify

CASES = Path(__file__).parent / "cases"
FORMATS = {"0.down": "q4_0", "1.down": "q8_0", "2.down": "q4_0", "head": "q4_0", "embed": "q4_0", "table": "q8_0", "1.norm": "q8_0"}
"""Wanted in the cases of keep-formats."""
PASSES = {p.name: p for p in passes(MADE_UP, formats=FORMATS, cache_layout=INT8_CACHE)}


def placed(path: Path) -> PlacedModel:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("// mesh: "), f"{path} does not say its mesh in its first line"
    return place_model(read_model(path), {}, parse_mesh(first.removeprefix("// mesh: ")), Options("f32"))


def result(path: Path) -> str:
    """The text that a case comes to."""
    match path.parent.name:
        case "place":
            return print_placed(placed(path))
        case "lower":
            program = lower(placed(path))
            verify(program, "lower")
        case name:
            program = parse_program(path.read_text(encoding="utf-8"), path.name)
            verify(program, "reading")
            with made_up_kernels():
                program = PASSES[name].run(program)
                verify(program, name)
    return print_program(program)


def cases() -> list[Path]:
    return sorted(p for p in CASES.glob("*/*") if p.suffix in (".in", ".ts"))


@pytest.mark.parametrize("path", cases(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_case(path: Path, request: pytest.FixtureRequest) -> None:
    expected, found = path.with_suffix(".out"), result(path)
    if request.config.getoption("--update-golden"):
        expected.write_text(found, encoding="utf-8")
    assert found == expected.read_text(encoding="utf-8"), f"{expected} differs; run with --update-golden and review the diff"


def test_every_pass_has_cases_and_every_expectation_a_case() -> None:
    assert {p.parent.name for p in cases()} == {"place", "lower", *PASSES}
    assert {p.with_suffix("") for p in CASES.glob("*/*.out")} == {p.with_suffix("") for p in cases()}
