"""The program as the runtime reads it: program.json of docs/architecture.md.

Assumes: kernels are selected, memory is planned, and launches are numbered. Does not: decide anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch.fx

from tsc.graph import CallBinding, Input, Program, Storage, op_of, operands, output_node, row_of, sequence_groups, type_of
from tsc.spans import Span
from tskernels.cache_layouts import CACHE_LAYOUTS
from tskernels.layouts import layout
from tskernels.registry import ROWS, lookup
from tspasses.kernel_calls import call_of
from tspasses.plan_memory import is_alias, row_bytes

FORMAT = 7


Plans = Sequence[tuple[int, Program]]
"""Programs for steps of so many tokens and more."""
Record = dict[str, Any]
"""A JSON object."""
Stored = tuple[list[Record], list[Record]]
"""Caches and states."""


def emit(plans: Plans, drafts: Plans = ()) -> Record:
    """A JSON object of the programs of an entry, and of the one that drafts from what that keeps. Its caches are numbered in the order of
    an entry's calls; of graphs that are the same in several programs there is one."""
    graphs: dict[str, Record] = {}
    listed, stored = _listed(plans, graphs, ([], []), "")
    multiple = math.lcm(*(_token_multiple(program) for _, program in drafts))
    for plan in listed:  # both run steps of the same sizes
        plan["token_multiple"] = math.lcm(plan["token_multiple"], multiple)
    drafting, (caches, states) = _listed(drafts, graphs, stored, "draft.")
    _, first = plans[0]
    kept = {"caches": caches} | ({"states": states} if states else {})
    return {"format": FORMAT, "plans": listed, "drafts": drafting, "sequence_groups": sequence_groups(first), **kept, "graphs": graphs}


def _listed(plans: Plans, graphs: dict[str, Record], before: Stored, prefix: str) -> tuple[list[Record], Stored]:
    """The plans as they are listed, and all caches and states; `graphs` gets theirs, whose names begin with the prefix."""
    listed: list[Record] = []
    caches, states = list(before[0]), list(before[1])
    for tokens, program in plans:
        caches, states = list(before[0]), list(before[1])
        names: dict[str, str] = {}
        for name, graph in program.graphs.items():  # callees come before their callers
            record = _graph(program, name, graph, names, caches, states)
            called = prefix + name
            names[name] = next((n for n in (called, f"{called}_{tokens}") if graphs.get(n, record) == record), f"{called}_of_{tokens}")
            graphs[names[name]] = record
        frame = program.frames[program.entry]
        entry = {"tokens": tokens, "entry": names[program.entry], "token_multiple": _token_multiple(program)}
        listed.append({**entry, "frame": {"T": frame[0], "S": frame[1]}})
    return listed, (caches, states)


def _token_multiple(program: Program) -> int:
    """What a step's tokens are padded to, so that the ranks that share them out have equally many."""
    types = (type_of(n) for g in program.graphs.values() for n in g.nodes if n.op != "output")
    rows = [str(d) for t in types for d in t.local(program.mesh)[:1] if isinstance(d, str)]
    return math.lcm(*(int(r.partition("/")[2] or 1) for r in rows))


def _graph(
    program: Program,
    name: str,
    graph: torch.fx.Graph,
    names: Mapping[str, str],
    caches: list[dict[str, Any]],
    states: list[dict[str, Any]],
) -> dict[str, Any]:
    """names: what the graphs that it calls are called there."""
    inputs, nodes = [], []
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs.append(_input(program, node, is_entry=name == program.entry))
        elif node.op == "call_module":
            nodes.append(_call(program, node, names, caches, states))
        elif node.op == "call_function":
            nodes.append(_node(program, node))
    return {"inputs": inputs, "nodes": nodes, "output": output_node(graph).name}


def _input(program: Program, node: torch.fx.Node, *, is_entry: bool) -> dict[str, Any]:
    kind: Input = node.meta["input"]
    type_ = type_of(node)
    found: dict[str, Any] = {
        "name": node.name,
        "kind": kind.kind,
        "dtype": type_.dtype,
        "shape": list(type_.local(program.mesh)),
        "type": type_.text(program.mesh),
    }
    if kind.kind == "cache":
        cache = _stored_cache(program, node)
        found |= {"dtype": cache["dtype"], "shape": ["pages", *cache["page"]]} | ({"layout": cache["layout"]} if "layout" in cache else {})
    elif kind.layout != ROWS:
        dtype, shape = layout(kind.layout).stored(type_.dtype, [int(d) for d in type_.local(program.mesh)])
        found |= {"dtype": dtype, "shape": list(shape), "layout": kind.layout}
    if kind.kind == "step":
        found["step"] = kind.name
    if kind.kind in ("step", "cache"):
        found["window"] = kind.window
    elif kind.kind == "coordinate":
        found["axis"] = "*".join(kind.axes)
    elif kind.kind == "weight" and is_entry:
        found["tensor"] = kind.tensor("")
    return found


def _node(program: Program, node: torch.fx.Node) -> dict[str, Any]:
    type_ = type_of(node)
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    args = [a.name for a in operands(node)]
    attributes = {n: a for n, a in zip(names, node.args, strict=False) if not isinstance(a, torch.fx.Node)}
    storage: Storage | None = None if is_alias(node) else node.meta.get("storage")
    region = None if is_alias(node) else row_bytes(program.mesh, node)[0]
    constants = lookup(f"ts::{op_of(node)}", node.meta["kernel"]).constants
    found = {
        "name": node.name,
        "op": f"ts::{op_of(node)}",
        "kernel": node.meta["kernel"],
        "args": args,
        "attrs": {**attributes, **node.kwargs},
        "dtype": type_.dtype,
        "shape": list(type_.local(program.mesh)),
        "type": type_.text(program.mesh),
        "span": _place(node),
        "region": region,
        "offset": storage.offset if storage else 0,
    }
    if "plan" in node.meta:
        found["plan"] = node.meta["plan"]
    return found | ({"constants": [float(c) for c in constants(call_of(program.mesh, node))]} if constants else {})


def _call(
    program: Program, node: torch.fx.Node, names: Mapping[str, str], caches: list[dict[str, Any]], states: list[dict[str, Any]]
) -> dict[str, Any]:
    binding: CallBinding = node.meta["call"]
    storage: Storage = node.meta["storage"]
    weights, bound, held = {}, {}, {}
    for inner in program.graphs[binding.graph].nodes:
        if inner.op != "placeholder":
            continue
        kind: Input = inner.meta["input"]
        if kind.kind == "weight":
            weights[inner.name] = kind.tensor(binding.prefix)
        elif kind.kind == "cache":
            bound[inner.name] = _add(caches, _stored_cache(program, inner))
        elif kind.kind == "state":
            dtype, shape = row_of(program.mesh, inner)
            held[inner.name] = _add(states, {"dtype": dtype, "shape": shape})
    found = {
        "name": node.name,
        "call": names[binding.graph],
        "args": [a.name for a in operands(node)],
        "weights": weights,
        "caches": bound,
        "span": _place(node),
        "region": storage.region,
        "offset": storage.offset,
        "frame": {"T": storage.frame[0], "S": storage.frame[1]},
    }
    return found | ({"states": held} if held else {})


def _place(node: torch.fx.Node) -> str:
    """File name, line and column: no folder, so that an artifact is the same wherever it was compiled."""
    span: Span = node.meta["span"]
    return f"{PurePath(span.source.name).name}:{span.line}:{span.column}"


def _add(records: list[dict[str, Any]], record: dict[str, Any]) -> int:
    """Its number."""
    records.append(record)
    return len(records) - 1


def _stored_cache(program: Program, node: torch.fx.Node) -> dict[str, Any]:
    kind: Input = node.meta["input"]
    dtype, page = CACHE_LAYOUTS[kind.layout].stored(*row_of(program.mesh, node))
    found: dict[str, Any] = {"dtype": dtype, "page": list(page), "window": kind.window}
    return found | ({"layout": kind.layout} if kind.layout != ROWS else {})
