"""Prints a program: its graphs in the notation that the author writes, one node a line. graph_parser.py reads it back.

    program decode: f32
    mesh { kv = 2, q = 2, tp = kv * q }
    sizes { D = 64, E = 16, F = 128 }

    graph MLP {
      value %x: f32[T, D]  // mlp.ts:3:12
      weight %gate: f32[F@tp, D] = "gate_proj.weight"  // mlp.ts:4:3
      %h = ts.linear(%x, %gate) @torch {T 0} : f32[T, F@tp]  // mlp.ts:6:11
      return %h
    }

An axis `over` others, `ep over dp * tp`, is a product of axes that were given ranks of their own.
A kernel, storage (`{T 0}`: region and offset), a frame and the layout of a weight (`= "gate_proj.weight" in panels`) or a cache are there
once a pass has set them; a span is when the node has a source.
Does not: say why a collective is there; that is the plan's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import torch.fx

from tsc.graph import (
    CallBinding,
    GraphType,
    Input,
    JoinedType,
    NodeType,
    Program,
    Storage,
    op_of,
    operands,
    output_node,
    step_name,
    type_of,
)
from tsc.mesh import Mesh
from tsc.spans import Span
from tskernels.registry import ROWS


def print_program(program: Program) -> str:
    """The program's text, the same for equal programs; parse_program of it prints the same again."""
    mesh = program.mesh
    axes = [f"{a.name} = {a.known_size}" for a in mesh.axes] + [
        f"{n} {'over' if n in mesh.joined else '='} {' * '.join(p)}" for n, p in mesh.products.items()
    ]
    sizes = [f"{name} = {size}" for name, size in sorted(_sizes(program).items())]
    header = f"program {program.entry}: {program.dtype}\nmesh {_braced(axes)}\nsizes {_braced(sizes)}\n"
    return "\n".join([header, *(_graph(program, name, graph) for name, graph in program.graphs.items())])


def _sizes(program: Program) -> dict[str, int]:
    """Every named extent that a type of the program has."""
    found: dict[str, int] = {}
    for graph in program.graphs.values():
        for node in graph.nodes:
            for part in _parts(type_of(node)) if node.op != "output" else ():
                for factor in part.shape.factors:
                    if factor.size is not None and factor.name != str(factor.size):
                        assert found.setdefault(factor.name, factor.size) == factor.size, f"{factor.name} has two sizes"
    return found


def _graph(program: Program, name: str, graph: torch.fx.Graph) -> str:
    frame = program.frames.get(name)
    lines = [_node(program.mesh, node) + _place(node) for node in graph.nodes if node.op != "output"]
    lines.append(f"return %{output_node(graph).name}")
    return "".join([f"graph {name}{_frame(frame)} {{\n", *(f"  {line}\n" for line in lines), "}\n"])


def _node(mesh: Mesh, node: torch.fx.Node) -> str:
    kind = type_of(node)
    if isinstance(kind, JoinedType):
        assert kind.dim == joining_dimension(kind.parts, is_weight=node.op == "placeholder"), f"%{node.name} is joined elsewhere"
    if node.op == "placeholder":
        return _input(mesh, node.name, node.meta["input"], kind)
    storage: Storage | None = node.meta.get("storage")
    where = f" {{{storage.region} {storage.offset}}}" if storage else ""
    if node.op == "call_module":
        call: CallBinding = node.meta["call"]
        prefix = f'<"{call.prefix.removesuffix(".")}">' if call.prefix else ""
        passed = ", ".join(f"%{n.name}" for n in operands(node))
        return f"%{node.name} = call {call.graph}{prefix}({passed}){where}{_frame(storage.frame if storage else None)} : {kind.text(mesh)}"
    arguments = ", ".join([f"%{n.name}" for n in operands(node)] + [f"{n} = {_constant(v)}" for n, v in constants(node).items()])
    kernel = f" @{node.meta['kernel']}" if "kernel" in node.meta else ""
    return f"%{node.name} = ts.{op_of(node)}({arguments}){kernel}{where} : {kind.text(mesh)}"


def _input(mesh: Mesh, name: str, kind: Input, type_: GraphType) -> str:
    text = f"{kind.kind} %{name}: {type_.text(mesh)}"
    match kind.kind:
        case "step":
            assert step_name(kind.name, kind.window) == name, f"%{name} is the step input {kind.name}"
        case "weight":
            text += " = " + " + ".join(json.dumps(p.tensor) for p in kind.parts)
        case "coordinate":
            text += f" of {mesh.name_of(kind.axes)}"
    window = f" window {kind.window}" if kind.window else ""
    return text + window + (f" in {kind.layout}" if kind.layout != ROWS else "")


def constants(node: torch.fx.Node) -> dict[str, Any]:
    """The parameters of an op that are no operands, by name."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {n: a for n, a in zip(names, node.args, strict=False) if not isinstance(a, torch.fx.Node)}
    return {**given, **node.kwargs}


def joining_dimension(parts: tuple[NodeType, ...], *, is_weight: bool) -> int:
    """Weights are joined along their outputs, which come first, and values along their last dimension."""
    return 0 if is_weight else len(parts[0].shape.groups) - 1


def _parts(kind: GraphType) -> Iterator[NodeType]:
    yield from kind.parts if isinstance(kind, JoinedType) else (kind,)


def _constant(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_constant, value))}]"
    assert isinstance(value, bool | int | float | str), f"{value!r} has no text"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _frame(frame: tuple[int, int] | None) -> str:
    return f" frame {{T {frame[0]}, S {frame[1]}}}" if frame is not None else ""


def _braced(items: list[str]) -> str:
    return f"{{ {', '.join(items)} }}" if items else "{}"


def _place(node: torch.fx.Node) -> str:
    span: Span = node.meta["span"]
    return f"  // {PurePath(span.source.name).name}:{span.line}:{span.column}" if span.source.name else ""
