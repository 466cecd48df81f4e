"""From the placed program to torch.fx graphs with every collective in place.

The entry and each instance it calls become a graph; what those call is inlined, so that fusion sees a whole layer. Weights with
grouped dimensions are flat, so a matmul gets `merge` before and `split` after it where a dimension has several factors.
Does not: choose anything. Every decision was the placement search's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch.fx

from tsc.elaborate import STEP_INPUTS
from tsc.graph import CallBinding, Input, NodeType, Program, WeightPart, step_name, target_of, window_of
from tsc.program import CallTarget, Operation, Value
from tsc.spans import Span
from tsc.types import Factor, Placement, Shape
from tspasses.placed import PlacedInstance, PlacedModel, Transition
from tspasses.transitions import moved

STEP_SHAPES = {
    "slots": Shape("i32", (Factor("T", None),), (1,)),
    "spans": Shape("i32", (Factor("S", None), Factor("2", 2)), (1, 1)),
    "lengths": Shape("i32", (Factor("S", None),), (1,)),
    "tables": Shape("i32", (Factor("S", None), Factor("S.pages", None)), (1, 1)),
    "states": Shape("i32", (Factor("S", None),), (1,)),
}
"""What cache ops read of a step beside the entry's own parameters."""


def lower(placed: PlacedModel, kept: Collection[str] = ()) -> Program:
    """One graph for the entry and for each distinct instance that it calls. kept: what other entries take of what this one keeps."""
    program = Program(placed.mesh, placed.options.dtype, placed.typed.entry, {})
    called = [o.attributes["target"].instance for o in placed.entry.instance.operations if o.op == "call"]
    for name in dict.fromkeys([*called, placed.typed.entry]):
        program.graphs[name] = _Lowering(placed, name, program, kept).run()
    return program


Key = tuple[int, Placement]


def _free(name: str) -> str:
    """A node name that no step input has: those have names that follow from what they are."""
    return f"{name}_value" if re.sub(r"_w\d+$", "", name) in (*STEP_SHAPES, *STEP_INPUTS) else name


class _Lowering:
    def __init__(self, placed: PlacedModel, name: str, program: Program, kept: Collection[str]) -> None:
        self.placed = placed
        self.mesh = placed.mesh
        self.program = program
        self.kept = kept
        self.is_entry = name == placed.typed.entry
        self.root = placed.instances[name]
        self.graph = torch.fx.Graph()
        self.steps: dict[tuple[str, int], torch.fx.Node] = {}
        self.coordinates: dict[tuple[str, ...], torch.fx.Node] = {}
        self.none: Placement = (None,) * len(self.mesh.active)

    def run(self) -> torch.fx.Graph:
        arguments = {}
        for index in self.root.instance.parameters:
            value = self.root.instance.values[index]
            is_step = value.kind == "step" or (value.shape.dtype == "i32" and value.name in STEP_INPUTS)
            kind = Input("step", name=value.name) if is_step else Input("kept", name=value.name) if value.kind == "kept" else Input("value")
            node = self._placeholder(value.name, kind, self._type(value.shape, self.root.placements[index]), value.span)
            if kind.kind == "step":
                self.steps[value.name, 0] = node
            arguments[index] = node
        result = self._inline(self.root, arguments, "")
        if result.op == "placeholder":  # a graph's result has storage of its own
            result = self._node("scale", (result,), {"factor": 1.0}, result.meta["type"], result.meta["span"], "result")
        self.graph.output(result)
        self.graph.lint()
        return self.graph

    def _inline(self, placed: PlacedInstance, arguments: Mapping[int, torch.fx.Node], prefix: str) -> torch.fx.Node:
        """Emit an instance's operations; returns the node of its result."""
        instance = placed.instance
        made: dict[Key, torch.fx.Node] = {(i, placed.placements[i]): n for i, n in arguments.items()}
        tied = {w.value: w.tied for w in instance.weights}
        names = {instance.values[w.value].name: w.value for w in instance.weights}
        for weight in instance.weights:
            other = tied[weight.value]
            if other is not None:
                made[weight.value, placed.placements[weight.value]] = made[names[other], placed.placements[names[other]]]
            else:
                made[weight.value, placed.placements[weight.value]] = self._weight(placed, weight.value, prefix + weight.tensor)
        for cache in instance.caches:
            value = instance.values[cache.value]
            kind = Input("state") if cache.kind == "state" else Input("cache", window=cache.window)
            made[cache.value, placed.placements[cache.value]] = self._placeholder(
                value.name, kind, self._type(value.shape, placed.placements[cache.value]), value.span
            )
        for index, operation in enumerate(instance.operations):
            self._transitions(placed, index, made)
            operands = [made[v, p] for v, p in zip(operation.operands, placed.needs[index], strict=True)]
            result = self._type(instance.values[operation.result].shape, placed.placements[operation.result])
            made[operation.result, result.placement] = self._operation(
                operation, instance.values[operation.result], operands, result, prefix
            )
        self._transitions(placed, len(instance.operations), made)
        return made[instance.result, placed.result]

    def _operation(self, operation: Operation, value: Value, operands: list[torch.fx.Node], result: NodeType, prefix: str) -> torch.fx.Node:
        match operation.op:
            case "pin":
                return operands[0]
            case "keep":
                name = operation.attributes["name"]
                return (
                    self._node("keep", tuple(operands), {"name": name}, result, operation.span, name) if name in self.kept else operands[0]
                )
            case "call":
                return self._call(operation, value, operands, result, prefix)
            case "linear":
                return self._linear(operation, value, operands, result)
            case "embedding":
                axes = self._axes_of(operands[1], 0)
                shard = self._coordinate(axes, operation.span) if axes else 0
                return self._node("embedding", (*operands, shard), {}, result, operation.span, value.name)
            case "take_rows" if axes := self._axes_of(operands[0], 0):  # the ranks' tokens are to rows what a split table is to ids
                shard = self._coordinate(axes, operation.span)
                return self._node("embedding", (operands[1], operands[0], shard), {}, result, operation.span, value.name)
            case "max_key" | "top_keys":
                [x] = operands
                axes = self._axes_of(x, len(x.meta["type"].shape.factors) - 1)
                shard = self._coordinate(axes, operation.span) if axes else 0
                return self._node(operation.op, (x, shard), operation.attributes, result, operation.span, value.name)
            case "slice":
                [x] = (self._ungrouped(n, operation.span) for n in operands)
                attributes = {name: operation.attributes[name] for name in ("start", "length", "dim")}
                return self._node("narrow", (x,), attributes, result, operation.span, value.name)
            case "unflatten":
                [x] = (self._ungrouped(n, operation.span) for n in operands)
                dim = operation.attributes["dim"]
                sizes = [int(d) for d in result.local(self.mesh)[dim : dim + len(operation.attributes["sizes"])]]
                return self._node("split", (x,), {"sizes": sizes, "dim": dim}, result, operation.span, value.name)
            case "cache_append" | "latent_append":
                slots = self._step("slots", window_of(operands[0]), operation.span)
                if axes := self._axes_of(operands[0], 0):
                    split = tuple(0 if a.name in axes else None for a in self.mesh.active)
                    own = NodeType(slots.meta["type"].shape, split)
                    slots = self._node("local_slice", (slots,), {"axis": "*".join(axes), "dim": 0}, own, operation.span, "own_slots")
                return self._node(operation.op, (*operands, slots), {}, result, operation.span, value.name)
            case "attention" | "sink_attention" | "latent_attention":
                operands = [self._ungrouped(n, operation.span) for n in operands]
                axes = self._axes_of(operands[0], 0)
                steps = [self._step(n, 0, operation.span) for n in ("spans", "lengths")]
                steps.append(self._step("tables", operation.attributes["window"], operation.span))
                return self._by_sequences(operation, value, [*operands, *steps], axes, result)
            case "short_conv" | "gated_delta":
                axes = self._axes_of(operands[0], 0)
                steps = [self._step(n, 0, operation.span) for n in ("spans", "states")]
                given = [self._ungrouped(n, operation.span) for n in operands]
                return self._by_sequences(operation, value, [*given, *steps], axes, result)
            case _:
                operands = [self._ungrouped(n, operation.span) for n in operands]
                attributes = {k: list(v) if isinstance(v, tuple) else v for k, v in operation.attributes.items()}
                return self._node(operation.op, tuple(operands), attributes, result, operation.span, value.name)

    def _by_sequences(
        self, operation: Operation, value: Value, given: list[torch.fx.Node], axes: tuple[str, ...], result: NodeType
    ) -> torch.fx.Node:
        """What works on whole sequences is told which block of the step's rows it has, where `axes` share them out."""
        which = {} if axes else {"shard": 0}
        if axes:
            given = [*given, self._coordinate(axes, operation.span)]
        return self._node(operation.op, tuple(given), {**which, **operation.attributes}, result, operation.span, value.name)

    def _call(self, operation: Operation, value: Value, operands: list[torch.fx.Node], result: NodeType, prefix: str) -> torch.fx.Node:
        target: CallTarget = operation.attributes["target"]
        below = prefix + (f"{target.prefix}." if target.prefix else "")
        if not self.is_entry:
            callee = self.placed.instances[target.instance]
            returned = self._inline(callee, dict(zip(callee.instance.parameters, operands, strict=True)), below)
            returned.meta.setdefault("returned", []).append(value.name)
            return returned
        inputs = [n for n in self.program.graphs[target.instance].nodes if n.op == "placeholder"]
        parameters = self.placed.instances[target.instance].instance.parameters
        passed = list(operands)
        for node in inputs[len(parameters) :]:
            kind: Input = node.meta["input"]
            if kind.kind == "step":
                passed.append(self._step(kind.name, kind.window, operation.span))
            elif kind.kind == "coordinate":
                passed.append(self._coordinate(kind.axes, operation.span))
        node = self.graph.create_node("call_module", target.instance, tuple(passed), {}, name=_free(value.name))
        node.meta.update(type=result, span=operation.span, call=CallBinding(target.instance, below))
        return node

    def _linear(self, operation: Operation, value: Value, operands: list[torch.fx.Node], result: NodeType) -> torch.fx.Node:
        x, w, *bias = operands
        contracted = operation.attributes["contracted"]
        if contracted > 1:
            kind = x.meta["type"]
            shape = replace(kind.shape, groups=(*kind.shape.groups[:-contracted], contracted))
            x = self._node("merge", (x,), {"count": contracted}, NodeType(shape, kind.placement), operation.span, f"{x.name}_flat")
        out = w.meta["type"].shape.groups[0]
        flat = NodeType(replace(result.shape, groups=(*result.shape.groups[:-out], out)), result.placement)
        node = self._node("linear", (x, w, *bias), {}, flat, operation.span, value.name)
        if out > 1:
            sizes = [int(d) for d in result.local(self.mesh)[-out:]]
            node = self._node("split", (node,), {"sizes": sizes}, result, operation.span, f"{value.name}_split")
        return node

    def _ungrouped(self, node: torch.fx.Node, span: Span) -> torch.fx.Node:
        """A value with a dimension for each factor: only `linear` reads weights as they are stored."""
        kind: NodeType = node.meta["type"]
        while any(count > 1 for count in kind.shape.groups):
            dim = next(i for i, count in enumerate(kind.shape.groups) if count > 1)
            groups = (*kind.shape.groups[:dim], *[1] * kind.shape.groups[dim], *kind.shape.groups[dim + 1 :])
            sizes = NodeType(kind.shape.ungrouped(), kind.placement).local(self.mesh)[dim : dim + kind.shape.groups[dim]]
            kind = NodeType(replace(kind.shape, groups=groups), kind.placement)
            node = self._node("split", (node,), {"sizes": [int(s) for s in sizes], "dim": dim}, kind, span, f"{node.name}_split")
        return node

    def _transitions(self, placed: PlacedInstance, index: int, made: dict[Key, torch.fx.Node]) -> None:
        for transition in placed.transitions:
            if transition.operation == index:
                made[transition.value, transition.target] = self._transition(transition, made[transition.value, transition.source])

    def _transition(self, transition: Transition, node: torch.fx.Node) -> torch.fx.Node:
        placement = transition.source
        for move in transition.moves:
            placement = moved(self.mesh, placement, move)
            attributes: dict[str, object] = {"axis": "*".join(move.axes)}
            match move.kind:
                case "all_reduce":
                    attributes["reduction"] = move.reduction
                case "all_gather":
                    attributes["dim"] = move.source
                case "reduce_scatter" | "local_slice":
                    attributes["dim"] = move.target
                case "all_to_all":
                    attributes.update(split_dim=move.target, concat_dim=move.source)
                case "keep_first":
                    pass
            kind = NodeType(node.meta["type"].shape, placement)
            node = self._node(move.kind, (node,), attributes, kind, transition.span, f"{node.name}_{move.kind}")
            node.meta["reason"] = transition.reason
        return node

    def _axes_of(self, node: torch.fx.Node, factor: int) -> tuple[str, ...]:
        """The axes that split a factor of a value."""
        return tuple(a.name for a, p in zip(self.mesh.active, node.meta["type"].placement, strict=True) if p == factor)

    # --- inputs -------------------------------------------------------------------------------------------------

    def _weight(self, placed: PlacedInstance, index: int, tensor: str) -> torch.fx.Node:
        value = placed.instance.values[index]
        kind = self._type(value.shape, placed.placements[index])
        return self._placeholder(value.name, Input("weight", parts=(WeightPart(tensor, kind),)), kind, value.span)

    def _step(self, name: str, window: int, span: Span) -> torch.fx.Node:
        """window: of the caches that slots and tables are about."""
        if (name, window) not in self.steps:
            kind = Input("step", name=name, window=window)
            self.steps[name, window] = self._placeholder(step_name(name, window), kind, NodeType(STEP_SHAPES[name], self.none), span)
        return self.steps[name, window]

    def _coordinate(self, axes: tuple[str, ...], span: Span) -> torch.fx.Node:
        if axes not in self.coordinates:
            kind = NodeType(Shape("i64", (), ()), self.none)
            self.coordinates[axes] = self._placeholder("rank_" + "_".join(axes), Input("coordinate", axes=axes), kind, span)
        return self.coordinates[axes]

    def _placeholder(self, name: str, kind: Input, type_: NodeType, span: Span) -> torch.fx.Node:
        last = next((n for n in reversed(self.graph.nodes) if n.op == "placeholder"), None)
        name = name if kind.kind == "step" else _free(name)
        with self.graph.inserting_after(last) if last else self.graph.inserting_before():
            node = self.graph.create_node("placeholder", name, (), {}, name=name)
        node.target = node.name
        node.meta.update(type=type_, span=span, input=kind)
        return node

    def _node(
        self, op: str, args: tuple[object, ...], attributes: Mapping[str, object], type_: NodeType, span: Span, name: str
    ) -> torch.fx.Node:
        node = self.graph.create_node("call_function", target_of(op), args, dict(attributes), name=_free(name))  # type: ignore[arg-type]
        node.meta.update(type=type_, span=span)
        return node

    def _type(self, shape: Shape, placement: Placement) -> NodeType:
        return NodeType(replace(shape, dtype=shape.dtype or self.program.dtype), placement)
