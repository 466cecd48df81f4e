"""What became of a model's weights, for a person: tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from tsc.quantization import QuantizationReport


def print_report(report: QuantizationReport) -> None:
    """On the standard output."""
    stored = [(s.format, f"{s.weights:,}", f"{s.bytes:,}", f"{s.bits:.2f}") for s in report.stored]
    weights, size = (sum(numbers) for numbers in zip(*((s.weights, s.bytes) for s in report.stored), strict=True))
    _print(("stored as", "weights", "bytes", "bits a weight"), [*stored, ("all", f"{weights:,}", f"{size:,}", f"{report.bits:.2f}")])
    if report.errors:
        _print(("largest errors", "relative"), [(name, f"{error:.2%}") for name, error in report.errors])


def _print(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console = Console()
    if console.is_terminal:
        table = Table(*(f"[bold]{h}" for h in head[:1]), box=None, pad_edge=False)
        for name in head[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        click.echo("  ".join(cells).rstrip())
