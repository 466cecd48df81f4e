"""What the compiler says when something is wrong: a code, a sentence, places, and fixes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from tsc.spans import Span


@dataclass(frozen=True, slots=True)
class Note:
    """A further fact, with the place it comes from when there is one."""

    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `code` has a page in docs/errors; `label` stands beside the caret."""

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    notes: tuple[Note, ...] = ()
    fixes: tuple[str, ...] = ()

    def headline(self) -> str:
        place = f"{self.span}: " if self.span else ""
        return f"{place}error[{self.code}]: {self.message}"

    def render(self) -> str:
        """The headline, the line with its caret, notes with theirs, and fixes."""
        parts = [self.headline()]
        if self.span:
            parts.append(_excerpt(self.span, self.label))
        for note in self.notes:
            parts.append(f"  note: {note.text}" + (f" ({note.span})" if note.span else ""))
            if note.span:
                parts.append(_excerpt(note.span, ""))
        parts.extend(f"  fix: {fix}" for fix in self.fixes)
        return "\n".join(parts)


class CompileError(Exception):
    """The input is wrong. Carries every diagnostic that was found; the command line prints them and exits with 1."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("\n".join(d.headline() for d in diagnostics))
        self.diagnostics = diagnostics


class MissingCapability(Exception):
    """The machine lacks something (a package, a device, disk space). The command line prints it and exits with 3."""


def near(name: str, names: Iterable[str]) -> str:
    """A phrase that offers the nearest known names, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else ""


def _excerpt(span: Span, label: str) -> str:
    line = span.source.line(span.line)
    end = span.end_column if span.end_line == span.line else len(line) + 1
    number = str(span.line)
    padding = "".join("\t" if c == "\t" else " " for c in line[: span.column - 1])
    caret = "^" * max(1, end - span.column)
    return f"  {number} | {line}\n  {' ' * len(number)} | {padding}{caret}{' ' + label if label else ''}"
