"""Two plans side by side: what one has that the other lacks, and what both come to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsc.diagnostics import CompileError, Diagnostic

KEYS = ("module", "kind", "axis", "before", "after", "bytes_per_row", "row", "times")


def read_plan(path: Path) -> dict[str, Any]:
    """A plan that `tsc plan --json` wrote. Raises CompileError."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for item in (*found["items"], *_of_drafter(found)):
            for key in KEYS:
                item[key]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
        fix = "give a file that `tsc plan ... --json` wrote"
        raise CompileError(Diagnostic("TS0508", f"--diff: `{path}` is no plan: {reason}", fixes=(fix,))) from None
    return found


def diff(plan: Mapping[str, Any], other: Mapping[str, Any], name: str) -> tuple[str, bool]:
    """Lines that start with `-` are collectives of the other plan, with `+` those of this one, then both totals; and whether they are the
    same."""
    ours, theirs = (Counter(_lines(p)) for p in (plan, other))
    lines = [f"- {line}" for line in (theirs - ours).elements()] + [f"+ {line}" for line in (ours - theirs).elements()]
    totals = [_total([*plan["items"], *_of_drafter(plan)]), _total([*other["items"], *_of_drafter(other)])]
    if not lines:
        return f"the same collectives as {name}: {totals[0][0]:,} bytes a token, {totals[0][1]:,} a sequence", True
    size = " ".join(f"{what} {was:,} -> {now:,};" for what, now, was in zip(("bytes a token", "a sequence"), *totals, strict=False))
    return "\n".join([*lines, f"{size} {totals[1][2]} -> {totals[0][2]} collectives a step"]), False


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    yield from map(_line, plan["items"])
    for item in _of_drafter(plan):
        yield f"{_line(item)} (drafter)"


def _of_drafter(plan: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    items: Sequence[Mapping[str, Any]] = (plan.get("drafter") or {}).get("items", ())
    return items


def _line(item: Mapping[str, Any]) -> str:
    rows = {"T": "token", "S": "sequence"}.get(item["row"], "step")
    change = f"{item['kind']} {item['axis']} {item['before']} -> {item['after']}"
    return f"{item['times']} x {item['module']}: {change}, {item['bytes_per_row']:,} B/{rows}"


def _total(items: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """Bytes a token, bytes a sequence, collectives a step."""
    tokens, sequences = (sum(i["bytes_per_row"] * i["times"] for i in items if i["row"] == row) for row in ("T", "S"))
    return tokens, sequences, sum(i["times"] for i in items)
