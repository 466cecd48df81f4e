"""What the parser says about files that do not parse, word for word: syntax/error_*.ts with .expected beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsc.diagnostics import CompileError, Diagnostic
from tsc.parser import parse
from tsc.spans import Source

SYNTAX = Path(__file__).parent / "syntax"
WHOLE = (SYNTAX / "format_everything.ts").read_text(encoding="utf-8")
SCRAPS = [*"{}()[]\"'@#;=:<é\n", *["->", "..", "//", "/*", "module", "for", "if", "else", "def"]]


@pytest.mark.parametrize("path", sorted(SYNTAX.glob("error_*.ts")), ids=lambda p: p.stem.removeprefix("error_"))
def test_the_diagnostic_reads_as_expected(path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        parse(Source(path.name, path.read_text(encoding="utf-8")))
    said = "\n".join(d.render() for d in caught.value.diagnostics) + "\n"
    assert said == path.with_suffix(".expected").read_text(encoding="utf-8")


def diagnosed(text: str) -> tuple[Diagnostic, ...]:
    try:
        parse(Source("any.ts", text))
    except CompileError as error:
        return error.diagnostics
    return ()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.sampled_from(["", *SCRAPS]))
def test_any_damage_is_answered_with_a_place(start: int, length: int, scrap: str) -> None:
    text = WHOLE[:start] + scrap + WHOLE[start + length :]
    for diagnostic in diagnosed(text):
        assert diagnostic.span is not None
        assert 1 <= diagnostic.span.line <= text.count("\n") + 1
        assert diagnostic.render()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_parsed_or_answered(text: str) -> None:
    assert all(d.render() for d in diagnosed(text))
