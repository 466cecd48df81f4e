"""docs/language.md says what the code does: its examples check, and rules.md is what `tsc rules` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsc.declarations import DTYPES, REDUCTIONS
from tsc.elaborate import STEP_INPUTS
from tsc.front import ModelSource, place_model
from tsc.parser import parse
from tsc.rules_page import page
from tsc.spans import Source
from tsc.static import FUNCTIONS
from tsc.stdlib import BUILTINS
from tspasses.placed import Options
from tspasses.transitions import COLLECTIVES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, kind
    return str(found[0])


def test_the_page_of_rules_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == page()
    assert all(f"\n{name}(" in page() or f", {name}(" in page() for name in BUILTINS)


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
