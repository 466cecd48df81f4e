"""The text of a program: it reads back as the same program, and hand-written mistakes are told with their line."""

from __future__ import annotations

import pytest
from tests.passes.test_semantics import MESHES
from tests.passes.tiny_models import CONFIGS, changes, lowered, stages

from tsc.diagnostics import CompileError
from tsc.graph import Program, op_of
from tsc.graph_parser import parse_program
from tsc.graph_text import print_program
from tskernels.target import parse_target
from tspasses.emit import emit
from tspasses.pipeline import passes
from tspasses.verify import verify

SMALL = """\
program MLP: f32
mesh { tp = 2 }
sizes { D = 8, F = 16 }

// what a column-parallel matmul gives
graph MLP {
  value %x: f32[T, D]
  weight %gate: f32[F@tp, D] = "gate"     // a comment that is no place
  %h = ts.linear(%x, %gate) : f32[T, F@tp]
  return %h
}
"""


@pytest.mark.parametrize(("mesh", "model"), [*MESHES, *(({"tp": 8}, m) for m in sorted(CONFIGS))], ids=str)
def test_text_reads_back_after_every_pass(model: str, mesh: dict[str, int]) -> None:
    for stage, _, text in changes(model, mesh):
        read = parse_program(text)
        verify(read, f"reading the text after {stage}")
        assert print_program(read) == text


def test_compiling_what_was_read_gives_the_same_program() -> None:
    program = parse_program(print_program(lowered("llama", {"tp": 4})))
    for step in passes(parse_target("cpu+")):
        program = step.run(program)
    *_, (_, direct) = stages("llama", {"tp": 4})
    assert print_program(program) == print_program(direct)
    assert emit([(1, program)]) == emit([(1, direct)])


def test_what_has_no_source_prints_no_place() -> None:
    assert (
        print_program(parse_program(SMALL))
        == "\n".join(line.split("  // ")[0].rstrip() for line in SMALL.splitlines(keepends=False) if not line.startswith("//")) + "\n"
    )


def test_a_place_is_kept() -> None:
    text = SMALL.replace("%h = ts.linear(%x, %gate) : f32[T, F@tp]", "%h = ts.linear(%x, %gate) : f32[T, F@tp]  // mlp.ts:6:11")
    assert "// mlp.ts:6:11\n" in print_program(parse_program(text))


def test_constants_keep_their_kind() -> None:
    program = lowered("llama", {"tp": 2})
    read = parse_program(print_program(program))

    def kinds(of: Program) -> list[str]:
        return [
            f"{op_of(n)} {k} {v!r}" for g in of.graphs.values() for n in g.nodes if n.op == "call_function" for k, v in n.kwargs.items()
        ]

    assert kinds(read) == kinds(program)


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "message"),
    [
        ("return %h", "retrun %h", "TS0601", 10, "`retrun`"),
        ("  return %h\n}\n", "", "TS0601", 10, "the end"),
        ("(%x, %gate)", "(%x, %gat)", "TS0602", 9, "did you mean `gate`"),
        ("ts.linear", "ts.linaer", "TS0602", 9, "did you mean `linear`"),
        ("[T, D]", "[T, DD]", "TS0602", 7, "did you mean `D`"),
        ("[F@tp, D]", "[F@dp, D]", "TS0602", 8, "the mesh has no axis `dp`"),
        ("value %x: f32", "value %x: f31", "TS0602", 7, "did you mean `f32`"),
        ("%h = ts", "%x = ts", "TS0602", 9, "two values"),
        ("program MLP", "program MLQ", "TS0602", 1, "did you mean `MLP`"),
        ("%h = ts.linear(%x, %gate)", "%h = call MLP(%x)", "TS0602", 9, "no graph `MLP` above"),
        ("(%x, %gate)", "(%x)", "TS0603", 9, "`w` is missing"),
        ("(%x, %gate)", "(%x, %gate, dim = 1)", "TS0603", 9, "`dim` does not fit"),
        ("f32[T, F@tp]", "f32[T@tp, F@tp]", "TS0603", 9, "`tp` is used twice"),
        ("f32[T, F@tp]", "f32[T, F | avg tp]", "TS0603", 9, "not `avg`"),
        ("(%x, %gate)", "(%x, %gate, %x, %x)", "TS0603", 9, "4 are given"),
        ("(%x, %gate) :", "(%x, %gate) {R 0} :", "TS0603", 9, "T or S"),
        ('= "gate"', '= "gate" + "up"', "TS0603", 8, "2 tensors for 1 types"),
        ("value %x: f32[T, D]", "step %slots: i32[T] window 4", "TS0603", 7, "is called `%slots_w4`"),
    ],
)
def test_a_mistake_is_told_with_its_line(old: str, new: str, code: str, line: int, message: str) -> None:
    assert old in SMALL
    with pytest.raises(CompileError, match=message) as caught:
        parse_program(SMALL.replace(old, new), "case.in")
    [diagnostic] = caught.value.diagnostics
    assert (diagnostic.code, diagnostic.span and diagnostic.span.line) == (code, line)
    assert diagnostic.headline().startswith(f"case.in:{line}:")
