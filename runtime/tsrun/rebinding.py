"""Another target's kernels for a program: the ops, their types and the memory stay. Weights that lie by rows are anybody's, and so are
caches, in layouts that keep the shape of rows.

What expands the latents of long chunks is left out, so that all are absorbed, as the model says: on CPUs a sequence's bits must not depend
on its chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from tskernels.cache_layouts import CACHE_LAYOUTS
from tskernels.registry import ROWS, Call, KernelMissing, Operand, op_named, select
from tskernels.target import Target, parse_target
from tsrun.errors import ArtifactError, MachineError
from tsrun.program import CallNode, Graph, Input, Node, Program, read_program

_Types = dict[str, Operand | None]
"""By name; None for what is no tensor."""


def program_for(file: Path, target: str | None) -> Program:
    """The program of a file, with kernels for another target than it was compiled for, where one is given; that loads torch."""
    program = read_program(file)
    return program if target is None else _bound_to(program, target, file)


def _bound_to(program: Program, name: str, file: Path) -> Program:
    target = parse_target(name)
    kept = [given for graph in program.graphs.values() for given in graph.inputs if given.layout != ROWS and _row_type(given) is None]
    if kept:
        what = f"stores {kept[0].name!r} as kernels of its own target alone take it ({kept[0].layout})"
        raise ArtifactError(str(file), what, f"compile the model with --target {name}")
    graphs: dict[str, Graph] = {}
    for name_, graph in program.graphs.items():
        graphs[name_] = absorbed(graph)
    for name_, graph in graphs.items():
        graphs[name_] = Graph(graph.inputs, _nodes(graphs, graph, target), graph.output)
    return msgspec.structs.replace(program, graphs=graphs)


def absorbed(graph: Graph) -> Graph:
    """Whoever reads a result with expanded rows in it reads the absorbed ones that these were written into."""
    few: dict[str, str] = {}
    found: list[Node | CallNode] = []
    for node in graph.nodes:
        args = [few.get(arg, arg) for arg in node.args]
        if isinstance(node, Node) and node.op == "ts::expanded_attention":
            few[node.name] = args[0]
        elif isinstance(node, Node):
            attrs = {name: value for name, value in node.attrs.items() if name != "expanded_from"}
            found.append(msgspec.structs.replace(node, args=args, attrs=attrs))
        else:
            found.append(msgspec.structs.replace(node, args=args))
    return Graph(graph.inputs, found, few.get(graph.output, graph.output))


def _nodes(graphs: Mapping[str, Graph], graph: Graph, target: Target) -> list[Node | CallNode]:
    types: _Types = {given.name: _of_input(given) for given in graph.inputs}
    found: list[Node | CallNode] = []
    for node in graph.nodes:
        if isinstance(node, CallNode):
            result = next(n for n in graphs[node.call].nodes if n.name == graphs[node.call].output)
            types[node.name] = _operand(node.dtype or result.dtype, node.shape or result.shape)
            found.append(node)
            continue
        # What is changed in place is stored as it was.
        types[node.name] = types[node.args[0]] if op_named(node.op).kind == "inplace" else _operand(node.dtype, node.shape)
        operands = tuple(operand for arg in node.args if (operand := types[arg]) is not None)
        call = Call(node.op, operands, node.attrs)
        try:
            kernel = select(call, target)
        except KernelMissing as error:
            raise MachineError(node.name, str(error).splitlines()[0], "run the artifact where it was compiled for") from None
        constants = [float(c) for c in kernel.constants(call)] if kernel.constants else []
        found.append(msgspec.structs.replace(node, kernel=kernel.name, constants=constants, plan=None))
    return found


def _of_input(given: Input) -> Operand | None:
    if given.kind == "coordinate":
        return None
    shape = list(given.shape or ())
    if given.kind != "cache":
        return _operand(given.dtype, shape)
    shape.insert(1, "rows")  # of a page, which are the runtime's choice, and not said
    return replace(_operand(_row_type(given) or given.dtype, shape), layout=given.layout)


def _row_type(given: Input) -> str | None:
    """The element type of a cache's rows, where their shape is that of what is stored."""
    if given.kind != "cache":
        return None
    dtype, row = (given.type or "").partition("[")[0], [n for n in (given.shape or ())[1:] if isinstance(n, int)]
    return dtype if CACHE_LAYOUTS[given.layout].stored(dtype, row) == (given.dtype, tuple(row)) else None


def _operand(dtype: str | None, shape: list[int | str] | None) -> Operand:
    assert dtype is not None
    assert shape is not None
    return Operand(dtype, tuple(n if isinstance(n, int) else None for n in shape))
