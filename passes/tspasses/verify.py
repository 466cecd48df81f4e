"""Check a program after each pass: every node's type follows from its operands' by a sound rule.

The placement of each op is looked up in the same rules that the search chose from, so a pass that breaks a placement, a dimension
or an order of evaluation is caught where it happens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch.fx

from tsc.graph import (
    CACHE_WRITES,
    GraphType,
    Input,
    JoinedType,
    NodeType,
    Program,
    layout_of,
    node_type,
    op_of,
    operands,
    output_node,
    row_of,
    tensor_operands,
    type_of,
    window_of,
)
from tsc.mesh import Mesh
from tsc.signatures import rules
from tsc.stdlib import BUILTINS, Mismatch
from tskernels.cache_layouts import CACHE_LAYOUTS
from tskernels.layouts import LAYOUTS, SCREEN
from tskernels.registry import ROWS, lookup
from tspasses.expand_latents import absorbed_by
from tspasses.fuse_gated import ACTIVATIONS
from tspasses.transitions import COLLECTIVES, divides, single_move


class VerificationError(Exception):
    """A pass made an unsound program: our bug, never the user's."""


def verify(program: Program, after: str) -> None:
    """Raise VerificationError naming the pass, the graph and the node."""
    for name, graph in program.graphs.items():
        for node in graph.nodes:
            try:
                _check(program, node)
            except (VerificationError, Mismatch) as error:
                raise VerificationError(f"after {after}: graph {name}: %{node.name}: {error}") from error
    _check_logits(program, after)


def _check_logits(program: Program, after: str) -> None:
    """Rows of sequences are sampled from: every rank has them whole."""
    result = type_of(output_node(program.graphs[program.entry]))
    if isinstance(result, NodeType) and result.shape.factors[0].name == "S" and any(place is not None for place in result.placement):
        raise VerificationError(f"after {after}: graph {program.entry}: returns {result.text(program.mesh)}, and sampling needs whole rows")


def _check(program: Program, node: torch.fx.Node) -> None:
    mesh = program.mesh
    match node.op:
        case "output":
            return
        case "placeholder":
            _check_input(mesh, node)
        case "call_module":
            _check_call(program, node)
        case _:
            kind = type_of(node)
            if isinstance(kind, NodeType) and not divides(kind.shape, mesh, kind.placement):
                raise VerificationError(f"the mesh does not divide {kind.text(mesh)}")
            _check_op(mesh, node, kind)
            _check_layouts(node)


def _check_input(mesh: Mesh, node: torch.fx.Node) -> None:
    kind: Input = node.meta["input"]
    found = type_of(node)
    parts = found.parts if isinstance(found, JoinedType) else (found,)
    if kind.kind == "weight" and tuple(p.type for p in kind.parts) != parts:
        raise VerificationError(f"the weight is {found.text(mesh)}, and its parts say otherwise")
    if kind.layout != ROWS and kind.kind not in ("weight", "cache"):
        raise VerificationError(f"a {kind.kind} has no layout, and this has {kind.layout}")
    if kind.kind == "cache" and not CACHE_LAYOUTS[kind.layout].takes(*row_of(mesh, node)):
        raise VerificationError(f"{found.text(mesh)} can not be stored in {kind.layout}")
    if kind.kind == "weight" and not LAYOUTS[kind.layout].takes(found.dtype, [int(d) for d in found.local(mesh)]):
        raise VerificationError(f"{found.text(mesh)} can not be stored in {kind.layout}")


def _check_layouts(node: torch.fx.Node) -> None:
    """Once a kernel is selected, it takes the layouts of its operands."""
    if "kernel" not in node.meta:
        return
    takes = lookup(f"ts::{op_of(node)}", node.meta["kernel"]).layouts
    for index, operand in enumerate(tensor_operands(node)):
        layout = layout_of(operand)
        if layout != takes.get(index, ROWS):
            raise VerificationError(
                f"kernel {node.meta['kernel']} takes %{operand.name} in {takes.get(index, ROWS)}, and it is in {layout}"
            )


def _check_call(program: Program, node: torch.fx.Node) -> None:
    callee = program.graphs[node.meta["call"].graph]
    bound = [n for n in callee.nodes if n.op == "placeholder" and n.meta["input"].kind in ("value", "step", "coordinate")]
    passed = operands(node)
    if len(bound) != len(passed):
        raise VerificationError(f"{len(passed)} operands for {len(bound)} inputs")
    for parameter, operand in zip(bound, passed, strict=True):
        _same(program.mesh, type_of(operand), type_of(parameter), f"input {parameter.name}")
        if parameter.meta["input"].window:
            _check_step_input(operand, parameter.meta["input"].name, parameter.meta["input"].window)
    _same(program.mesh, type_of(node), type_of(output_node(callee)), "the result")


def _check_op(mesh: Mesh, node: torch.fx.Node, result: GraphType) -> None:
    op = op_of(node)
    if op in (*COLLECTIVES, "local_slice", "keep_first"):
        _check_collective(mesh, node, op)
    elif op in ("add_norm", "all_reduce_add", "all_reduce_add_norm"):
        _check_residual(mesh, node, result)
    elif op in ("qk_rope", "qk_norm_rope"):
        _check_qk_rope(mesh, node, result)
    elif op == "keep":
        _same(mesh, type_of(node), type_of(operands(node)[0]), "what is kept")
    elif op == "split" and len(node_type(operands(node)[0]).shape.factors) != len(node_type(node).shape.factors):
        _check_unflatten(mesh, node)
    elif op in ("split", "merge"):
        source, made = node_type(operands(node)[0]), node_type(node)
        _same(mesh, replace(source, shape=source.shape.ungrouped()), replace(made, shape=made.shape.ungrouped()), "a view's value")
    elif op == "narrow":
        _check_narrow(mesh, node)
    elif op == "screened_linear":
        _check_screened_linear(mesh, node)
    elif op == "gated_linear":
        _check_gated_linear(mesh, node)
    elif op == "expanded_attention":
        _check_expanded_attention(mesh, node)
    elif isinstance(result, JoinedType):
        _check_joined_linear(mesh, node, result)
    else:
        if op in CACHE_WRITES:
            _check_step_input(operands(node)[-1], "slots", window_of(node))
        elif BUILTINS[op].windowed:
            _check_window(node, op)
        elif BUILTINS[op].stateful:
            _check_state(node, op)
        types = [node_type(n) for n in operands(node)]
        _check_rule(mesh, op, types[: len(BUILTINS[op].tensors)], node_type(node), node.kwargs)


def _check_window(node: torch.fx.Node, op: str) -> None:
    """What reads a cache sees the cache's window, through the block tables of that window's pages."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {name: a for name, a in zip(names, node.args, strict=False) if isinstance(a, torch.fx.Node)}
    window = window_of(given["cache"])
    if node.kwargs["window"] != window:
        raise VerificationError(f"{op} sees a window of {node.kwargs['window']}, and its cache has {window}")
    _check_step_input(given["tables"], "tables", window)


def _check_state(node: torch.fx.Node, op: str) -> None:
    """What overwrites a state is all that has it, and is told where each sequence's is."""
    given = operands(node)
    index = BUILTINS[op].tensors.index("state")
    state, spans, states = given[index], *given[index + 1 : index + 3]
    if state.op != "placeholder" or state.meta["input"].kind != "state" or len(state.users) != 1:
        raise VerificationError(f"%{state.name} is not a state that {op} alone has")
    _check_step_input(spans, "spans", 0)
    _check_step_input(states, "states", 0)


def _check_step_input(node: torch.fx.Node, name: str, window: int) -> None:
    """The node is a step input, or a rank's part of one."""
    while node.op != "placeholder":
        node = operands(node)[0]
    kind: Input = node.meta["input"]
    if (kind.kind, kind.name, kind.window) != ("step", name, window):
        raise VerificationError(f"%{node.name} is given for the step's {name} of window {window}")


def _check_rule(mesh: Mesh, op: str, types: list[NodeType], result: NodeType, attributes: Mapping[str, Any]) -> None:
    defaults = {name: value for name, value in BUILTINS[op].statics.items() if value is not ...}
    typing = BUILTINS[op].infer([t.shape for t in types], {**defaults, **attributes})
    if not typing.shape.agrees(result.shape):
        raise VerificationError(f"{op} gives {typing.shape.text()}, and the node says {result.text(mesh)}")
    for axis, _ in enumerate(mesh.active):
        given = tuple(t.placement[axis] for t in types)
        if not any(r.operands == given and r.result == result.placement[axis] for r in rules(typing.signature)):
            raise VerificationError(
                f"{op} has no rule on {mesh.active[axis].name} from {[t.text(mesh) for t in types]} to {result.text(mesh)}"
            )


def _check_joined_linear(mesh: Mesh, node: torch.fx.Node, result: JoinedType) -> None:
    x, *stored = operands(node)
    weights = [type_of(w) for w in stored]
    joined = [w.parts for w in weights if isinstance(w, JoinedType) and len(w.parts) == len(result.parts)]
    if op_of(node) != "linear" or len(joined) != len(weights):
        raise VerificationError("only a linear of joined weights gives joined values")
    for parts, made in zip(zip(*joined, strict=True), result.parts, strict=True):
        _check_rule(mesh, "linear", [node_type(x), *parts], made, {})


def _check_gated_linear(mesh: Mesh, node: torch.fx.Node) -> None:
    """It is placed as the ops that it stands for."""
    x, w = operands(node)
    weight, result, activation = type_of(w), node_type(node), node.kwargs["activation"]
    if not isinstance(weight, JoinedType) or len(weight.parts) != 2 or weight.parts[0] != weight.parts[1]:
        raise VerificationError(f"a gate and what it gates are two weights of one type, and these are {weight.text(mesh)}")
    if activation not in ACTIVATIONS:
        raise VerificationError(f"there is no activation {activation!r}")
    _check_rule(mesh, "linear", [node_type(x), weight.parts[0]], result, {})
    _check_rule(mesh, str(activation), [result], result, {})
    _check_rule(mesh, "mul", [result, result], result, {})


def _check_screened_linear(mesh: Mesh, node: torch.fx.Node) -> None:
    """It is placed as the product that it stands for."""
    x, w, screen, keep = operands(node)
    kind: Input = screen.meta["input"]
    if kind.layout != SCREEN or replace(kind, layout=w.meta["input"].layout) != w.meta["input"]:
        raise VerificationError(f"%{screen.name} is not %{w.name} in the layout {SCREEN}")
    if keep.meta["input"].name != "keep":
        raise VerificationError(f"%{keep.name} does not say how many of the largest to keep")
    _check_rule(mesh, "linear", [node_type(x), node_type(w)], node_type(node), {})


def _check_expanded_attention(mesh: Mesh, node: torch.fx.Node) -> None:
    """It completes what latent attention between two products has made of the same operands, and overwrites that."""
    few, content, rotated, cache, k_up, v_up, *step = operands(node)
    found = absorbed_by(few)
    if found is None or len(few.users) != 1:
        raise VerificationError(f"%{few.name} is not what latent attention alone has made of some rows")
    if [content, k_up, v_up] != [found.content, found.k_up, found.v_up] or operands(found.latent)[1:] != [rotated, cache, *step]:
        raise VerificationError(f"its operands are not those of %{few.name}")
    if {**node.kwargs, "window": 0} != found.latent.kwargs:
        raise VerificationError(f"{dict(node.kwargs)} says other than {dict(found.latent.kwargs)} of %{found.latent.name}")
    _same(mesh, type_of(node), type_of(few), "the result")


def _check_narrow(mesh: Mesh, node: torch.fx.Node) -> None:
    source = type_of(operands(node)[0])
    if not isinstance(source, JoinedType):
        return _check_slice(mesh, node, source, node_type(node))
    start = 0
    for part in source.parts:
        length = part.local(mesh)[source.dim]
        if (start, length) == (node.kwargs["start"], node.kwargs["length"]):
            return _same(mesh, part, type_of(node), "the part")
        start += int(length)
    raise VerificationError(f"no part of {source.text(mesh)} starts at {node.kwargs['start']}")


def _check_unflatten(mesh: Mesh, node: torch.fx.Node) -> None:
    """A dimension that is whole on every rank, as the factors that make it up."""
    source, made = node_type(operands(node)[0]), node_type(node)
    attributes: dict[str, Any] = dict(node.kwargs)
    dim, sizes = attributes["dim"], attributes["sizes"]
    parts = made.shape.factors[dim : dim + len(sizes)]
    if source.shape != source.shape.ungrouped() or [p.size for p in parts] != sizes:
        raise VerificationError(f"{attributes} does not lead from {source.text(mesh)} to {made.text(mesh)}")
    _check_rule(mesh, "unflatten", [source], made, {"dim": dim, "parts": parts})


def _check_slice(mesh: Mesh, node: torch.fx.Node, source: NodeType, made: NodeType) -> None:
    """Part of a dimension that is whole on every rank."""
    attributes: dict[str, Any] = {"dim": -1, **node.kwargs}
    dim = attributes["dim"] % len(source.shape.factors)
    whole, part = source.shape.factors[dim], made.shape.factors[dim]
    if source.shape != source.shape.ungrouped() or part.size != attributes["length"]:
        raise VerificationError(f"{dict(node.kwargs)} does not lead from {source.text(mesh)} to {made.text(mesh)}")
    if whole.size is None or not 0 <= attributes["start"] <= whole.size - (part.size or 0):
        raise VerificationError(f"{source.text(mesh)} has no {part.name} from {attributes['start']}")
    _check_rule(mesh, "slice", [source], made, {**attributes, "dim": dim, "part": part})


def _check_collective(mesh: Mesh, node: torch.fx.Node, op: str) -> None:
    source, made = node_type(operands(node)[0]), node_type(node)
    if source.shape != made.shape:
        raise VerificationError(f"{op} changes {source.text(mesh)} into {made.text(mesh)}")
    found = single_move(source.shape, mesh, source.placement, made.placement)
    if found is None or found.kind != op or "*".join(found.axes) != node.kwargs["axis"]:
        raise VerificationError(f"{op} does not lead from {source.text(mesh)} to {made.text(mesh)}")
    wanted = {"dim": found.source if op == "all_gather" else found.target}
    if op == "all_reduce":
        wanted = {"reduction": found.reduction}  # type: ignore[dict-item]
    elif op == "keep_first":
        wanted = {}
    elif op == "all_to_all":
        wanted = {"split_dim": found.target, "concat_dim": found.source}
    if any(node.kwargs[k] != v for k, v in wanted.items()):
        raise VerificationError(f"{op} has attributes {dict(node.kwargs)}, its types say {wanted}")


def _check_residual(mesh: Mesh, node: torch.fx.Node, result: GraphType) -> None:
    """It is placed as the ops that it stands for."""
    x, residual, *norm = (node_type(n) for n in operands(node))
    total, *normalized = result.parts if isinstance(result, JoinedType) else (result,)
    if "axis" in node.kwargs:
        found = single_move(x.shape, mesh, x.placement, total.placement)
        if found is None or (found.kind, found.reduction, "*".join(found.axes)) != ("all_reduce", "sum", node.kwargs["axis"]):
            raise VerificationError(f"no sum over {node.kwargs['axis']} leads from {x.text(mesh)} to {total.text(mesh)}")
        x = replace(x, placement=total.placement)
    _check_rule(mesh, "add", [residual, x], total, {})
    if len(normalized) != len(norm) or (isinstance(result, JoinedType) and result.dim != 1):
        raise VerificationError(f"{op_of(node)} gives {result.text(mesh)}")
    for w, made in zip(norm, normalized, strict=True):
        _check_rule(mesh, "rms_norm", [total, w], made, {k: node.kwargs[k] for k in ("eps", "offset")})


def _check_qk_rope(mesh: Mesh, node: torch.fx.Node, result: GraphType) -> None:
    """It is placed as the ops that it stands for, of the first two of joined values."""
    x, positions, *norms = operands(node)
    given, attributes = type_of(x), dict(node.kwargs)
    counts, width = [attributes.pop(name) for name in ("q_heads", "k_heads")], attributes.pop("width")
    norm = {name: attributes.pop(name) for name in ("eps", "offset") if norms}
    if not isinstance(given, JoinedType) or result != JoinedType(given.parts[:2], 1) or given.dim != 1:
        raise VerificationError(f"{given.text(mesh)} does not begin with {result.text(mesh)}")
    for index, (part, count) in enumerate(zip(result.parts, counts, strict=True)):
        heads = replace(part, shape=part.shape.ungrouped())
        _, *found, last = heads.local(mesh)
        if (math.prod(map(int, found)), last) != (count, width):
            raise VerificationError(f"{part.text(mesh)} is not {count} heads of {width}")
        if norms:
            _check_rule(mesh, "rms_norm", [heads, node_type(norms[index])], heads, norm)
        _check_rule(mesh, "rope", [heads, node_type(positions)], heads, attributes)


def _same(mesh: Mesh, found: GraphType, wanted: GraphType, what: str) -> None:
    if found != wanted:
        raise VerificationError(f"{what} is {found.text(mesh)}, not {wanted.text(mesh)}")
