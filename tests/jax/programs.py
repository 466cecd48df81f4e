"""Runs an artifact for JAX through the engine, and reads what XLA made of its programs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
from tests.models.running import Trace, run

from tsrun.jax_program import JaxPrograms
from tsrun.jax_steps import Bucket
from tsrun.limits import LimitOptions

Collectives = Counter[tuple[str, int, int]]
"""How often there is one, by kind, ranks and bytes of its payload."""
_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+|ragged-all-to-all)(?:-start)?\((.*)")
_ARRAY = re.compile(r"(pred|[a-z]+?)(\d+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Ran:
    """Traces of the prompts, and by bucket the text of the program that XLA compiled."""

    traces: list[Trace]
    texts: Mapping[Bucket, str]


def run_jax(path: Path, prompts: Sequence[Sequence[int]], max_tokens: int, options: LimitOptions) -> Ran:
    made: list[JaxPrograms] = []
    begin = JaxPrograms.__init__

    def noted(self: JaxPrograms, *arguments: Any) -> None:
        made.append(self)
        begin(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaxPrograms, "__init__", noted)
        traces = run(path, prompts, max_tokens, options)
    [programs] = made
    return Ran(traces, {bucket: compiled.as_text() or "" for bucket, compiled in programs.compiled.items()})


def compiled_collectives(text: str) -> Collectives:
    """Of a program's optimized HLO. One that carries several arrays is none of ours, and counts as one of all their bytes."""
    found: Collectives = Counter()
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            result, kind, rest = match.groups()
            size = sum(int(bits) // 8 * prod(int(d) for d in dims.split(",") if d) for _, bits, dims in _ARRAY.findall(result))
            ranks = _group_size(rest)
            found[kind, ranks, size * ranks if kind == "reduce-scatter" else size] += 1
    return found


def _group_size(text: str) -> int:
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    assert counted is not None, text
    return int(counted[1])


def planned_collectives(plan: Mapping[str, Any], bucket: Bucket) -> Collectives:
    """Of one of plan.json's plans, in a step as large as the bucket."""
    rows = {"T": bucket.tokens, "S": bucket.rows, "": 1}
    found: Collectives = Counter()
    for item in plan["items"]:
        found[item["kind"].replace("_", "-"), item["ranks"], item["bytes_per_row"] * rows[item["row"]]] += item["times"]
    return found
