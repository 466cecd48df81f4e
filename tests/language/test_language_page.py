"""docs/language.md says what the code does: its tables are derived from it, and its examples check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsc.declarations import DTYPES, REDUCTIONS
from tsc.elaborate import STEP_INPUTS
from tsc.front import ModelSource, place_model
from tsc.mesh import Axis, Mesh
from tsc.parser import parse
from tsc.signatures import rules
from tsc.spans import Source
from tsc.static import FUNCTIONS
from tsc.stdlib import BUILTINS
from tsc.types import AxisPlacement, Factor, Shape
from tspasses.placed import Options
from tspasses.transitions import COLLECTIVES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
MESH = Mesh((Axis("a", None),))

OPERANDS = {
    "embedding": ("i32[T]", "[V, D]"),
    "linear": ("[T, D]", "[(K, E), D]"),
    "rms_norm": ("[T, K, E]", "[E]"),
    "rope": ("[T, K, E]", "i32[T]"),
    "silu": ("[T, F]",),
    "gelu": ("[T, F]",),
    "gelu_tanh": ("[T, F]",),
    "softcap": ("[S, V]",),
    "scale": ("[T, D]",),
    "add": ("[T, D]", "[T, D]"),
    "mul": ("[T, D]", "[T, D]"),
    "take_rows": ("[T, D]", "i32[S]"),
    "cache_append": ("[2, K, E]", "[T, K, E]", "[T, K, E]"),
    "attention": ("[T, K, G, E]", "[2, K, E]"),
}
"""What each function is shown with; a further dimension behaves as the one that is shown in its place."""


def shape(text: str) -> Shape:
    dtype, inside = text.rstrip("]").split("[", 1)
    groups = [g.strip("()").split(", ") for g in re.findall(r"\([^)]*\)|[^, ]+", inside)]
    return Shape.of(dtype, [[Factor(n, int(n) if n.isdigit() else None) for n in g] for g in groups])


def rule_lines(name: str) -> list[str]:
    """The rules of a function on one axis `a`, less those that split T or S."""
    shapes = [shape(t) for t in OPERANDS[name]]
    typing = BUILTINS[name].infer(shapes, {"eps": 1e-6, "offset": 0.0, "theta": 1.0, "scaling": None, "cap": 1.0, "factor": 1.0} | SCALES)
    kinds = [*shapes, typing.shape]
    lines = []
    for rule in rules(typing.signature):
        places: list[AxisPlacement] = [*rule.operands, rule.result]
        if not any(isinstance(p, int) and s.factors[p].is_dynamic for s, p in zip(kinds, places, strict=True)):
            texts = [s.text(MESH, (p,)) for s, p in zip(kinds, places, strict=True)]
            lines.append(f"{', '.join(texts[:-1])} -> {texts[-1]}")
    return lines


SCALES = {"scale": 1.0, "softcap": 0.0}


def head(name: str) -> str:
    builtin = BUILTINS[name]
    statics = [p if default is ... else f"{p} = {'none' if default is None else default}" for p, default in builtin.statics.items()]
    return f"{name}({', '.join([*builtin.tensors, *statics])})"


def table() -> str:
    """One entry a function; those with equal rules share them."""
    entries: dict[tuple[str, ...], list[str]] = {}
    for name in BUILTINS:
        entries.setdefault(tuple(rule_lines(name)), []).append(head(name))
    return "\n\n".join("\n".join([", ".join(heads), *(f"    {line}" for line in lines)]) for lines, heads in entries.items()) + "\n"


def block(kind: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, kind
    return str(found[0])


def test_the_table_of_placement_rules_is_what_the_code_says() -> None:
    assert block("rules") == table()


def test_every_function_is_in_the_table() -> None:
    assert OPERANDS.keys() == BUILTINS.keys()


@pytest.mark.parametrize("mesh", [None, {}, {"tp": 2}, {"tp": 4}])
def test_the_model_on_the_page_checks(mesh: dict[str, int] | None) -> None:
    source = Source("model.ts", block("ts"))
    place_model(ModelSource("model", source, parse(source)), None, mesh, Options())


@pytest.mark.parametrize(
    "names", [DTYPES, REDUCTIONS, FUNCTIONS, COLLECTIVES, STEP_INPUTS], ids=["dtypes", "reductions", "functions", "collectives", "steps"]
)
def test_the_words_of_the_language_are_on_the_page(names: object) -> None:
    assert [n for n in names if f"`{n}" not in PAGE] == []  # type: ignore[attr-defined]


def test_the_page_names_codes_that_have_pages() -> None:
    assert all((ROOT / "docs" / "errors" / f"{code}.md").exists() for code in re.findall(r"TS\d{4}", PAGE))
