"""`tsc plan --html`: one self-contained page on which source, layer graphs, collectives and their times lead to each other.

The page is plan_page.html with the data of one plan put in; it loads nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from tsc.diagnostics import CompileError, Diagnostic
from tsc.program import CallTarget, Operation
from tsc.types import Placement
from tspasses.alternatives import alternatives
from tspasses.placed import PlacedInstance, PlacedModel, Transition
from tspasses.plan import Plan, PlanItem
from tspasses.transitions import COLLECTIVES, moved

MARK = "/*DATA*/null"
CHAR, HEIGHT, STEP, GAP, MARGIN = 7.3, 46, 68, 26, 36
"""Pixels: a character of a node's text, a node, from row to row, between nodes, left of all for edges that pass rows."""


def plan_page(plan: Plan, placed: PlacedModel, name: str) -> str:
    """The page. Its data is JSON in a script, with `<` escaped so that no text of a model can end the script."""
    data = {
        "title": name,
        "plan": {k: v for k, v in asdict(plan).items() if k != "items"},
        "source": _source(placed).split("\n"),
        "collectives": [_collective(plan_item, placed) for plan_item in plan.items],
        "modules": [_module(plan, placed, module) for module in _order(plan, placed)],
    }
    text = files("tsc").joinpath("plan_page.html").read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    return text.replace(MARK, json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def write_page(path: Path, page: str) -> None:
    """Raises CompileError where the file cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CompileError(Diagnostic("TS0509", f"--html: cannot write `{path}`: {reason}")) from None


def _source(placed: PlacedModel) -> str:
    span = placed.entry.instance.result_span
    assert span is not None
    return span.source.text


def _order(plan: Plan, placed: PlacedModel) -> list[str]:
    """The entry, then modules in order of first call."""
    return [placed.typed.entry, *(n for n in reversed(list(placed.instances)) if n != placed.typed.entry)]


def _transition_of(item: PlanItem, placed: PlacedModel) -> Transition:
    found = placed.instances[item.module].transitions
    return next(t for t in found if str(t.span) == item.span and t.reason == item.reason and any(m.kind == item.kind for m in t.moves))


def _collective(item: PlanItem, placed: PlacedModel) -> dict[str, Any]:
    transition = _transition_of(item, placed)
    value = placed.instances[item.module].instance.values[transition.value]
    rejected = [
        {
            "added": [f"{i.kind} of {i.value}" for i in other.added],
            "removed": [f"{i.kind} of {i.value}" for i in other.removed],
            "seconds": other.seconds,
            "bytes": other.bytes_per_token,
        }
        for other in alternatives(placed, item.module, transition.value, item.kind)
    ]
    return asdict(item) | {"line": transition.span.line, "made": value.span.line, "rejected": rejected}


# --- a module's graph ----------------------------------------------------------------------------------------------


def _module(plan: Plan, placed: PlacedModel, name: str) -> dict[str, Any]:
    times = next((i.times for i in plan.items if i.module == name), 1)
    nodes, edges = _graph(plan, placed, name)
    width = _lay_out(nodes, edges)
    return {"name": name, "times": times, "nodes": nodes, "edges": edges, "width": width}


def _graph(plan: Plan, placed: PlacedModel, name: str) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """A node for each parameter, operation and collective, in order of evaluation."""
    instance = placed.instances[name]
    values = instance.instance.values
    waiting = [i for i in plan.items if i.module == name]
    nodes: list[dict[str, Any]] = []
    edges: list[tuple[int, int]] = []
    made: dict[tuple[int, Placement], int] = {}

    def text(value: int, placement: Placement) -> str:
        return values[value].shape.text(placed.mesh, placement)

    def add(kind: str, label: str, type_: str, line: int, sources: list[int], collective: str = "") -> int:
        nodes.append({"kind": kind, "label": label, "type": type_, "line": line, "collective": collective})
        edges.extend((s, len(nodes) - 1) for s in dict.fromkeys(sources))
        return len(nodes) - 1

    def change(transition: Transition) -> None:
        placement, node = transition.source, made[transition.value, transition.source]
        for move in transition.moves:
            placement = moved(placed.mesh, placement, move)
            is_collective = move.kind in COLLECTIVES
            item = waiting.pop(0) if is_collective else None
            label = f"{item.id} {move.kind} {item.axis}" if item else move.kind
            kind = "collective" if item else "local"
            node = add(kind, label, text(transition.value, placement), transition.span.line, [node], item.id if item else "")
        made[transition.value, transition.target] = node

    for index in instance.instance.parameters:
        made[index, instance.placements[index]] = add(
            "input", values[index].name, text(index, instance.placements[index]), values[index].span.line, []
        )
    for index, operation in enumerate(instance.instance.operations):
        for transition in instance.transitions:
            if transition.operation == index:
                change(transition)
        sources = [made[key] for key in zip(operation.operands, instance.needs[index], strict=True) if key in made]
        label = ", ".join([_label(placed, operation), *_stored(instance, operation)])
        kind = "call" if operation.op == "call" else "op"
        result = operation.result, instance.placements[operation.result]
        made[result] = add(kind, label, text(*result), operation.span.line, sources)
    for transition in instance.transitions:
        if transition.operation == len(instance.instance.operations):
            change(transition)
    span = instance.instance.result_span
    assert span is not None
    last = instance.instance.result
    add("result", "result", text(last, instance.result), span.line, [made[last, instance.result]])
    return nodes, edges


def _label(placed: PlacedModel, operation: Operation) -> str:
    if operation.op != "call":
        return operation.op
    target: CallTarget = operation.attributes["target"]
    return f"{placed.typed.instances[target.instance].module} {target.prefix}".strip()


def _stored(instance: PlacedInstance, operation: Operation) -> Iterator[str]:
    """Weights and caches that an operation reads: they have no node."""
    for operand in operation.operands:
        if instance.instance.values[operand].kind in ("weight", "cache"):
            yield instance.instance.values[operand].name


def _lay_out(nodes: list[dict[str, Any]], edges: list[tuple[int, int]]) -> int:
    """Give each node a place: a row below all that it reads, beside others of the row; returns the width in pixels."""
    depth = [0] * len(nodes)
    for source, target in edges:  # in order of evaluation, so that sources are settled
        depth[target] = max(depth[target], depth[source] + 1)
    rows: dict[int, list[int]] = {}
    for node, row in enumerate(depth):
        rows.setdefault(row, []).append(node)
    widths = {n: int(max(len(nodes[n]["label"]), len(nodes[n]["type"])) * CHAR) + 18 for n in range(len(nodes))}
    total = max(sum(widths[n] + GAP for n in row) for row in rows.values())
    for row, members in rows.items():
        x = MARGIN + (total - sum(widths[n] + GAP for n in members)) // 2
        for node in members:
            nodes[node].update(x=x + GAP // 2, y=row * STEP, width=widths[node], height=HEIGHT)
            x += widths[node] + GAP
    return MARGIN + total
