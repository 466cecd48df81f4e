"""Places in source text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """A text with the name it is reported under."""

    name: str
    text: str

    @staticmethod
    def read(path: Path) -> Source:
        return Source(str(path), path.read_text(encoding="utf-8"))

    def line(self, number: int) -> str:
        lines = self.text.split("\n")
        return lines[number - 1] if 1 <= number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a source; line and column count from 1, end_column is exclusive."""

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def text(self) -> str:
        """The first line of what the span covers."""
        end = self.end_column if self.end_line == self.line else None
        return self.source.line(self.line)[self.column - 1 : None if end is None else end - 1]
