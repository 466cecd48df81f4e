"""Finds the page of an error code: `page("TS0104")` is the text of docs/errors/TS0104.md."""

from __future__ import annotations

from pathlib import Path

from tsc.diagnostics import CompileError, Diagnostic, near


def page(code: str) -> str:
    """The page for a code; an unknown code raises CompileError with the nearest ones."""
    pages = _pages()
    path = pages.get(code.strip().upper())
    if path is None:
        message = f"there is no error code `{code}`{near(code.strip().upper(), pages)}"
        raise CompileError(Diagnostic("TS0122", message, fixes=("codes look like TS0104; a diagnostic shows its own in brackets",)))
    return path.read_text(encoding="utf-8")


def codes() -> tuple[str, ...]:
    """Every code that has a page, in order."""
    return tuple(sorted(_pages()))


def _pages() -> dict[str, Path]:
    package = Path(__file__).resolve().parent
    installed, checkout = package / "docs" / "errors", package.parents[1] / "docs" / "errors"
    return {p.stem: p for p in (installed if installed.is_dir() else checkout).glob("TS*.md")}
