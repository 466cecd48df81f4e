"""Every page in docs/errors: its failing example raises its code, says what the page shows, and its mended example passes."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tsc import explain
from tsc.diagnostics import CompileError
from tsc.parser import parse, parse_file
from tsc.spans import Source

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "errors").glob("TS*.md"))
FENCE = re.compile(r"^```(\w+)(?: (failing|mended))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def check_syntax(text: str) -> None:
    parse(Source("model.ts", text))


def check_path(text: str) -> None:
    path = Path(text.strip())
    parse_file(ROOT / path if (ROOT / path).exists() else path)


def check_bytes(text: str) -> None:
    """The example shows bytes with escapes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path("model.ts")
        path.write_bytes(text.encode("ascii").decode("unicode_escape").encode("latin-1"))
        parse_file(path)


def check_code(text: str) -> None:
    explain.page(text.strip())


# How a page's examples are run: by its code where that has an entry, else by its family.
CHECKS: dict[str, Callable[[str], None]] = {
    "TS01": check_syntax,
    "TS0115": check_path,
    "TS0116": check_bytes,
    "TS0122": check_code,
}


def check_for(code: str) -> Callable[[str], None]:
    return CHECKS.get(code) or CHECKS.get(code[:4]) or pytest.fail(f"CHECKS has nothing that runs the examples of {code[:4]}xx")


def examples(page: Path) -> dict[str, str]:
    return {match[2] or match[1]: match[3] for match in FENCE.finditer(page.read_text(encoding="utf-8"))}


def codes_used(*folders: str) -> set[str]:
    return {code for folder in folders for path in (ROOT / folder).rglob("*.py") for code in re.findall(r"TS\d{4}", path.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_failing_example_says_what_the_page_shows(page: Path) -> None:
    shown = examples(page)
    with pytest.raises(CompileError) as caught:
        check_for(page.stem)(shown["failing"])
    assert page.stem in [d.code for d in caught.value.diagnostics]
    if "text" in shown:
        assert "\n\n".join(d.render() for d in caught.value.diagnostics) == shown["text"].rstrip("\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_mended_example_passes(page: Path) -> None:
    check_for(page.stem)(examples(page)["mended"])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_starts_with_its_code(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith(f"# {page.stem}: ")


def test_every_syntax_code_has_a_page() -> None:
    assert {c for c in codes_used("tsc/tsc") if c.startswith("TS01")} <= {p.stem for p in PAGES}


@pytest.mark.xfail(reason="pages of other families are still to be written", strict=True)
def test_every_code_has_a_page() -> None:
    assert sorted(codes_used("tsc/tsc", "passes") - {p.stem for p in PAGES}) == []


def test_every_page_is_of_a_code_in_use() -> None:
    assert {p.stem for p in PAGES} <= codes_used("tsc/tsc", "passes")


def test_a_page_is_found_by_its_code_in_any_case() -> None:
    assert explain.page("ts0104") == explain.page("TS0104")
    assert "TS0104" in explain.codes()


def test_an_unknown_code_offers_near_ones() -> None:
    with pytest.raises(CompileError, match="did you mean `TS0104`"):
        explain.page("TS01044")
