"""What became of a model's weights, for a person."""

from __future__ import annotations

from tsc.quantization import QuantizationReport
from tsc.tables import print_table


def print_report(report: QuantizationReport) -> None:
    """On the standard output."""
    stored = [(s.format, f"{s.weights:,}", f"{s.bytes:,}", f"{s.bits:.2f}") for s in report.stored]
    weights, size = (sum(numbers) for numbers in zip(*((s.weights, s.bytes) for s in report.stored), strict=True))
    print_table(("stored as", "weights", "bytes", "bits a weight"), [*stored, ("all", f"{weights:,}", f"{size:,}", f"{report.bits:.2f}")])
    if report.errors:
        print_table(("largest errors", "relative"), [(name, f"{error:.2%}") for name, error in report.errors])
