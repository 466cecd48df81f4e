"""Every page in docs/errors: its failing example raises its code, says what the page shows, and its mended example passes.

A page about a model file may hold a `json config` block and a `mesh` block, which its examples are then checked with. Console
examples are run by tests/cli/test_error_pages.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tsc import explain
from tsc.diagnostics import CompileError
from tsc.front import ModelSource, parse_mesh, place_model
from tsc.parser import parse, parse_file
from tsc.spans import Source
from tspasses.placed import Options

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "errors").glob("TS*.md"))
WITH_EXAMPLES = [p for p in PAGES if "```console" not in p.read_text(encoding="utf-8")]
FENCE = re.compile(r"^```(\w+)(?: (failing|mended|config))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Page = dict[str, str]
"""A page's blocks: `failing`, `mended`, `text`, and where it has them `config` and `mesh`."""


def check_model(text: str, page: Page) -> None:
    source = Source("model.ts", text)
    config = json.loads(page["config"]) if "config" in page else None
    mesh = parse_mesh(page["mesh"].strip()) if "mesh" in page else None
    place_model(ModelSource("model", source, parse(source)), config, mesh, Options())


def check_program(text: str, _: Page) -> None:
    from tsc.graph_parser import parse_program

    parse_program(text, "program.txt")


def check_syntax(text: str, _: Page) -> None:
    parse(Source("model.ts", text))


def check_path(text: str, _: Page) -> None:
    path = Path(text.strip())
    parse_file(ROOT / path if (ROOT / path).exists() else path)


def check_bytes(text: str, _: Page) -> None:
    """The example shows bytes with escapes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path("model.ts")
        path.write_bytes(text.encode("ascii").decode("unicode_escape").encode("latin-1"))
        parse_file(path)


def check_code(text: str, _: Page) -> None:
    explain.page(text.strip())


# How a page's examples are run: by its code where that has an entry, else by its family.
CHECKS: dict[str, Callable[[str, Page], None]] = {
    "TS01": check_syntax,
    "TS02": check_model,
    "TS03": check_model,
    "TS06": check_program,
    "TS0115": check_path,
    "TS0116": check_bytes,
    "TS0122": check_code,
}


def check_for(code: str) -> Callable[[str, Page], None]:
    return CHECKS.get(code) or CHECKS.get(code[:4]) or pytest.fail(f"CHECKS has nothing that runs the examples of {code[:4]}xx")


def examples(page: Path) -> Page:
    return {match[2] or match[1]: match[3] for match in FENCE.finditer(page.read_text(encoding="utf-8"))}


def codes_used(*folders: str) -> set[str]:
    return {code for folder in folders for path in (ROOT / folder).rglob("*.py") for code in re.findall(r"TS\d{4}", path.read_text())}


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda p: p.stem)
def test_the_failing_example_says_what_the_page_shows(page: Path) -> None:
    shown = examples(page)
    with pytest.raises(CompileError) as caught:
        check_for(page.stem)(shown["failing"], shown)
    assert page.stem in [d.code for d in caught.value.diagnostics]
    if "text" in shown:
        assert "\n\n".join(d.render() for d in caught.value.diagnostics) == shown["text"].rstrip("\n")


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda p: p.stem)
def test_the_mended_example_passes(page: Path) -> None:
    shown = examples(page)
    check_for(page.stem)(shown["mended"], shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_starts_with_its_code(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith(f"# {page.stem}: ")


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
