"""Weights in layouts: texts of them read back, plans of one artifact agree on them, and the verifier tells what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.passes.made_up_kernels import MADE_UP, made_up_kernels
from tests.passes.test_semantics import expected, run
from tests.passes.tiny_models import CONFIGS, lowered
from torch import testing

from tsc.diagnostics import CompileError
from tsc.graph import Program
from tsc.graph_parser import parse_program
from tsc.graph_text import print_program
from tsc.weights import StoredWeight, stored_tensors, stored_weights
from tskernels.target import CPU
from tspasses.choose_layouts import ChooseLayouts
from tspasses.fuse_gated import FuseGated
from tspasses.pipeline import StoragePass, passes
from tspasses.verify import VerificationError, verify

CASES = Path(__file__).parent / "cases"


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with made_up_kernels():
        yield


def stored(program: Program) -> dict[str, StoredWeight]:
    return {w.name: w for w in stored_weights(program)}


def compiled(*programs: Program) -> list[Program]:
    """The programs of one artifact after all passes, each verified and read back from its text."""
    made = list(programs)
    for step in passes(MADE_UP):
        agreed = step.agree(made) if isinstance(step, StoragePass) else step
        made = [agreed.run(p) for p in made]
        for index, program in enumerate(made):
            verify(program, step.name)
            made[index] = parse_program(print_program(program))
            assert print_program(made[index]) == print_program(program)
    return made


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("model", sorted(CONFIGS))
def test_a_program_with_layouts_means_the_same(model: str, ranks: int) -> None:
    [program] = compiled(lowered(model, {"tp": ranks}))
    layouts = {w.layout for w in stored(program).values()}
    assert "panels" in layouts
    assert ("gated_panels" in layouts) == (model != "qwen3_moe")  # whose layers have experts only
    for logits in run(program):
        for found, wanted in zip(logits, expected(model), strict=True):
            testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_a_processor_without_such_kernels_has_rows() -> None:
    program = FuseGated().run(lowered("llama", {"tp": 2}))
    assert {w.layout for w in stored(ChooseLayouts(CPU).run(program)).values()} == {"rows"}


def test_plans_that_read_a_weight_otherwise_agree() -> None:
    text = (CASES / "choose-layouts" / "linears.in").read_text(encoding="utf-8")
    other = text.replace(
        "%logits = ts.linear(%rows, %head) : f32[S, V]",
        "%logits = ts.linear(%rows, %head) : f32[S, V]\n  %more = ts.add(%head, %head) : f32[V, D]",
    )
    alone, first, second = (parse_program(t) for t in (text, text, other))
    step = ChooseLayouts(MADE_UP)
    assert stored(step.run(alone))["head"].layout == "panels"
    agreed = step.agree([first, second])
    layouts = [{name: w.layout for name, w in stored(agreed.run(p)).items()} for p in (first, second)]
    assert layouts[0] == layouts[1]
    assert layouts[0]["head"] == "rows"
    assert layouts[0]["0.down"] == layouts[0]["1.down"] == "panels"


def test_plans_fuse_the_same_gates() -> None:
    text = (CASES / "fuse-gated" / "several.in").read_text(encoding="utf-8")
    other = text.replace("return %n", "%more = ts.mul(%n, %h) : f32[T, F]\n  return %more")
    agreed = FuseGated().agree([parse_program(text), parse_program(other)])
    found = [stored(agreed.run(parse_program(t))) for t in (text, other)]
    assert list(found[0]) == list(found[1])
    assert {"first.gate+first.up", "second.gate", "second.up"} < set(found[0])


def test_what_a_rank_stores_is_in_whole_panels() -> None:
    program = parse_program((CASES / "choose-layouts" / "linears.out").read_text(encoding="utf-8"))
    shapes = {name: (info.dtype, info.shape) for name, info in stored_tensors(program.mesh, list(stored(program).values())).items()}
    assert shapes["0.gate+0.up"] == ("f32", (3, 32, 32))
    assert shapes["1.q+1.k"] == ("f32", (2, 32, 32))
    assert shapes["0.down"] == ("f32", (1, 48, 32))
    assert shapes["0.norm"] == ("f32", (32,))
    assert shapes["embed"] == ("f32", (32, 32))


@pytest.mark.parametrize(
    ("case", "old", "new", "message"),
    [
        ("select-kernels/layouts", '"down" in panels', '"down"', "%d: kernel panels takes %down in panels, and it is in rows"),
        ("select-kernels/layouts", '"rows"', '"rows" in panels', "%result: kernel torch takes %rows in rows, and it is in panels"),
        ("choose-layouts/linears", '= "norm"', '= "norm" in panels', r"f32\[D\] can not be stored in panels"),
        ("fuse-gated/gate_up", '"gelu_tanh"', '"tanh"', "there is no activation 'tanh'"),
        ("fuse-gated/gate_up", "f32[F@tp, D] + f32[F@tp, D]", "f32[F@tp, D] + f32[D@tp, D]", "two weights of one type, and these are"),
        ("fuse-gated/gate_up", "%m = ts.gated_linear", "%m = ts.linear", "is missing|does not fit"),
    ],
)
def test_what_does_not_fit_is_told(case: str, old: str, new: str, message: str) -> None:
    text = (CASES / f"{case}.out").read_text(encoding="utf-8")
    assert text.count(old) == 1
    with pytest.raises((VerificationError, CompileError), match=message):
        verify(parse_program(text.replace(old, new)), "a change")


def test_a_gate_of_summands_is_refused() -> None:
    text = (CASES / "fuse-gated" / "gate_up.out").read_text(encoding="utf-8").replace("F@tp, D] +", "F, D@tp] +")
    text = text.replace("+ f32[F@tp, D]", "+ f32[F, D@tp]").replace("value %x: f32[T, D]", "value %x: f32[T, D@tp]")
    text = text.replace(": f32[T, F@tp]", ": f32[T, F | sum tp]").replace("%down: f32[D, F@tp]", "%down: f32[D, F]")
    with pytest.raises(VerificationError, match="%m: gelu_tanh has no rule"):
        verify(parse_program(text), "a change")


def test_an_unknown_layout_is_told_with_its_line() -> None:
    text = (CASES / "choose-layouts" / "linears.out").read_text(encoding="utf-8")
    with pytest.raises(CompileError, match="there is no layout `panel`; did you mean `panels`"):
        parse_program(text.replace('"head" in panels', '"head" in panel'))
