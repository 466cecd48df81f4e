"""Draws what `benchmarks/cpu.py --json` wrote, as its --plot does.

usage: python benchmarks/cpu_plot.py RESULTS.json PICTURE.png    (writes PICTURE_batch.png and PICTURE_context.png)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cpu_cases import CASES
from cpu_measure import Turn
from cpu_report import NAMES, Measured, Result, plot


def read(name: str, said: dict[str, Any]) -> Measured:
    """The scaling cases of one model, which have one figure each."""
    scaling = [case for case in CASES if case.scaling is not None and case.name in said["cases"]]
    results = {
        case.name: {who: _result(one, case.figures[0].key) for who, one in said["cases"][case.name].items() if "figures" in one}
        for case in scaling
    }
    weights: Any = SimpleNamespace(name=name, read_bytes=said["read_bytes"])
    return Measured(weights, scaling, results, said["roof_rounds"])


def _result(one: dict[str, Any], key: str) -> Result:
    return Result([Turn({key: value}, []) for value in one["figures"][key]["rounds"]])


def main() -> int:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    found = json.loads(Path(sys.argv[1]).read_text())
    why = plot(Path(sys.argv[2]), [read(name, said) for name, said in found["models"].items()], list(NAMES))
    if why is not None:
        raise SystemExit(f"no plot: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
