"""Reads the text that graph_text.py prints, also when written by hand: spans may be left out and comments added.

Does not: check that an op's type follows from its operands'; that is the verifier's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch.fx
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedEOF, UnexpectedInput, UnexpectedToken

from tsc.diagnostics import CompileError, Diagnostic, near
from tsc.graph import CallBinding, GraphType, Input, JoinedType, NodeType, Program, Storage, WeightPart, step_name, target_of
from tsc.graph_text import joining_dimension
from tsc.mesh import Axis, Mesh
from tsc.spans import Source, Span
from tsc.stdlib import BUILTINS
from tsc.types import STEP_EXTENTS, AxisPlacement, Factor, Shape
from tskernels.cache_layouts import CACHE_LAYOUTS
from tskernels.dtypes import SIZES
from tskernels.layouts import LAYOUTS
from tskernels.registry import ROWS

REDUCTIONS = ("sum", "max")
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "local_slice", "keep_first")
OPS = (
    *BUILTINS,
    *("gated_linear", "expanded_attention", "add_norm", "all_reduce_add", "all_reduce_add_norm", "qk_rope", "qk_norm_rope"),
    *("split", "merge", "narrow"),
    *_COLLECTIVES,
)


def parse_program(text: str, name: str = "<program>") -> Program:
    """The program of a text; raises CompileError (TS06xx) with the line. `name` is what messages call the text."""
    source = Source(name, text)
    try:
        tree: Any = _grammar().parse(text)
    except UnexpectedInput as error:
        line, column = error.line, error.column
        if isinstance(error, UnexpectedEOF) or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
            line, column = text.count("\n") + 1, 1
        found = source.line(line)[column - 1 :].split(" ")[0] or "the end"
        span = Span(source, line, column, line, column + 1)
        raise CompileError(Diagnostic("TS0601", f"this is no program text: `{found}` does not belong here", span)) from None
    return _Reader(source).program(tree)


@cache
def _grammar() -> Lark:
    path = Path(__file__).with_name("graph_text.lark")
    return Lark(path.read_text(encoding="utf-8"), parser="lalr", lexer="contextual", propagate_positions=True, maybe_placeholders=False)


# lark is untyped: its trees and tokens are Any, and only this file touches them.
class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.mesh = Mesh()
        self.sizes: dict[str, int] = {}
        self.graphs: dict[str, torch.fx.Graph] = {}
        self.nodes: dict[str, torch.fx.Node] = {}  # of the graph that is being read
        self.graph = torch.fx.Graph()

    def program(self, tree: Any) -> Program:
        entry, dtype, mesh, sizes, *graphs = tree.children
        self._element_type(dtype)
        self._mesh(mesh)
        for size in sizes.children:
            self.sizes[str(size.children[0])] = int(size.children[1])
        frames = {}
        for graph in graphs:
            key, *rest = graph.children
            if str(key) in self.graphs:
                self._fail("TS0602", f"there are two graphs `{key}`", key)
            self.graph, self.nodes = torch.fx.Graph(), {}
            for item in rest:
                if isinstance(item, Token):
                    self.graph.output(self._node(item))
                elif item.data == "frame":
                    frames[str(key)] = self._frame(item)
                else:
                    getattr(self, f"_{item.data}")(*_split(item), item)
            self.graphs[str(key)] = self.graph
        if str(entry) not in self.graphs:
            self._fail("TS0602", f"there is no graph `{entry}`{near(str(entry), self.graphs)}", entry)
        return Program(self.mesh, str(dtype), str(entry), self.graphs, frames)

    def _mesh(self, tree: Any) -> None:
        axes: list[Axis] = []
        products: dict[str, tuple[str, ...]] = {}
        joined: set[str] = set()
        for axis in tree.children:
            name, *joins, value = axis.children
            if joins:
                joined.add(str(name))
            if isinstance(value, Token):
                axes.append(Axis(str(name), int(value)))
            else:
                products[str(name)] = tuple(map(str, value.children))
        self.mesh = Mesh(tuple(axes), products, frozenset(joined))
        for axis in tree.children:
            if isinstance(axis.children[-1], Tree):
                self._leaves(axis.children[-1])

    # --- inputs

    def _value(self, span: Any, name: Any, type_: Any, tree: Any) -> None:
        self._placeholder(name, Input("value"), self._type(type_), span)

    def _step(self, span: Any, name: Any, type_: Any, *rest: Any) -> None:
        window = _window(rest)
        short = str(name)[1:].removesuffix(step_name("", window))
        if str(name)[1:] != step_name(short, window):
            self._fail("TS0603", f"a step input of window {window} is called `{step_name(str(name), window)}`", name)
        self._placeholder(name, Input("step", name=short, window=window), self._type(type_), span)

    def _weight(self, span: Any, name: Any, type_: Any, tensors: Any, *rest: Any) -> None:
        parts = tuple(self._type(t) for t in type_.children)
        if len(parts) != len(tensors.children):
            self._fail("TS0603", f"{len(tensors.children)} tensors for {len(parts)} types", tensors)
        bound = tuple(WeightPart(str(t)[1:-1], p) for t, p in zip(tensors.children, parts, strict=True))
        kind = Input("weight", parts=bound, layout=self._layout(rest, LAYOUTS))
        self._placeholder(name, kind, _join(parts, is_weight=True), span)

    def _cache(self, span: Any, name: Any, type_: Any, *rest: Any) -> None:
        self._placeholder(name, Input("cache", window=_window(rest), layout=self._layout(rest, CACHE_LAYOUTS)), self._type(type_), span)

    def _state(self, span: Any, name: Any, type_: Any, tree: Any) -> None:
        self._placeholder(name, Input("state"), self._type(type_), span)

    def _coordinate(self, span: Any, name: Any, type_: Any, axes: Any, tree: Any) -> None:
        self._placeholder(name, Input("coordinate", axes=self._leaves(axes)), self._type(type_), span)

    def _layout(self, rest: tuple[Any, ...], known: Collection[str]) -> str:
        """Of an input: what follows its type says it, or it is by rows."""
        mark = _mark(rest, "layout")
        if mark is None:
            return ROWS
        if mark not in known:
            self._fail("TS0602", f"there is no layout `{mark}`{near(mark, known)}", mark)
        return str(mark)

    def _placeholder(self, name: Any, kind: Input, type_: GraphType, span: Any) -> None:
        node = self._add(name, span, lambda text: self.graph.create_node("placeholder", text, (), {}, name=text))
        node.meta.update(type=type_, input=kind)

    # --- nodes

    def _op(self, span: Any, name: Any, op: Any, arguments: Any, *rest: Any) -> None:
        *marks, type_, _ = rest
        short = str(op).removeprefix("ts.")
        if short not in OPS:
            self._fail("TS0602", f"there is no op `{op}`{near(short, OPS)}", op)
        target = target_of(short)
        operands, attributes = self._arguments(arguments)
        known = [a.name for a in target._schema.arguments]
        required = [a.name for a in target._schema.arguments if not a.has_default_value()]
        given = [*known[: len(operands)], *attributes]
        wrong = [n for n in given if n not in known or given.count(n) > 1]
        lacking = [n for n in required if n not in given]
        if wrong or lacking or len(operands) > len(known):
            problem = f"`{wrong[0]}` does not fit" if wrong else f"`{lacking[0]}` is missing" if lacking else f"{len(operands)} are given"
            self._fail("TS0603", f"`{op}` takes ({', '.join(known)}): {problem}", arguments if arguments.children else op)
        types = tuple(self._type(t) for t in type_.children)
        node = self._add(name, span, lambda text: self.graph.create_node("call_function", target, operands, attributes, name=text))
        node.meta["type"] = _join(types, is_weight=False)
        for mark in marks:
            if mark.data == "kernel":
                node.meta["kernel"] = str(mark.children[0])
            else:
                node.meta["storage"] = self._storage(mark, (0, 0))

    def _call(self, span: Any, name: Any, callee: Any, *rest: Any) -> None:
        *marks, type_, _ = rest
        prefix = ""
        if isinstance(marks[0], Token):
            prefix = str(marks.pop(0))[2:-2] + "."
        if str(callee) not in self.graphs:
            self._fail("TS0602", f"there is no graph `{callee}` above{near(str(callee), self.graphs)}", callee)
        operands, attributes = self._arguments(marks.pop(0))
        if attributes:
            self._fail("TS0603", "a call takes no attributes", callee)
        node = self._add(name, span, lambda text: self.graph.create_node("call_module", str(callee), operands, {}, name=text))
        node.meta.update(type=self._type(type_), call=CallBinding(str(callee), prefix))
        frame = next((self._frame(m) for m in marks if m.data == "frame"), (0, 0))
        for mark in marks:
            if mark.data == "storage":
                node.meta["storage"] = self._storage(mark, frame)

    def _arguments(self, tree: Any) -> tuple[tuple[torch.fx.Node, ...], dict[str, Any]]:
        operands, attributes = [], {}
        for argument in tree.children:
            first, *value = argument.children
            if value:
                attributes[str(first)] = _constant(value[0])
            else:
                operands.append(self._node(first))
        return tuple(operands), attributes

    def _node(self, token: Any) -> torch.fx.Node:
        name = str(token)[1:]
        if name not in self.nodes:
            self._fail("TS0602", f"there is no value `{token}` above{near(name, self.nodes)}", token)
        return self.nodes[name]

    def _add(self, token: Any, span: Any, make: Callable[[str], torch.fx.Node]) -> torch.fx.Node:
        name = str(token)[1:]
        if name in self.nodes:
            self._fail("TS0602", f"there are two values `{token}`", token)
        node = make(name)
        if node.name != name:
            self._fail("TS0602", f"`{token}` is no name for a value, as Python uses it", token)
        self.nodes[name] = node
        node.meta["span"] = self._source(token, span)
        return node

    def _source(self, token: Any, span: Any) -> Span:
        """Where the node comes from; a hand-written one that does not say has its own line, in a source without a name."""
        if span is None:
            return Span(Source("", self.source.text), token.line, token.column, token.end_line, token.end_column)
        name, line, column = str(span)[2:].strip().rsplit(":", 2)
        return Span(Source(name, ""), int(line), int(column), int(line), int(column) + 1)

    def _storage(self, tree: Any, frame: tuple[int, int]) -> Storage:
        region, offset = tree.children
        if str(region) == "T":
            return Storage("T", int(offset), frame)
        if str(region) != "S":
            self._fail("TS0603", f"a region is T or S, not `{region}`", region)
        return Storage("S", int(offset), frame)

    def _frame(self, tree: Any) -> tuple[int, int]:
        first, tokens, second, sequences = tree.children
        if (str(first), str(second)) != ("T", "S"):
            self._fail("TS0603", "a frame is {T bytes, S bytes}", first)
        return int(tokens), int(sequences)

    # --- types

    def _type(self, tree: Any) -> NodeType:
        dtype, *rest = tree.children
        self._element_type(dtype)
        places: dict[str, AxisPlacement] = {}
        dimensions: list[list[Factor]] = []
        index = 0
        for item in rest:
            if item.data == "pending":
                for partial in item.children:
                    reduction, axes = partial.children
                    if str(reduction) not in REDUCTIONS:
                        self._fail("TS0603", f"a value is pending a `sum` or a `max`, not `{reduction}`", reduction)
                    self._put(places, axes, str(reduction))
                continue
            dimensions.append([])
            for factor in item.children:
                name, *axes = factor.children
                dimensions[-1].append(self._factor(name))
                if axes:
                    self._put(places, axes[0], index)
                index += 1
        return NodeType(Shape.of(str(dtype), dimensions), tuple(places.get(a.name) for a in self.mesh.active))

    def _put(self, places: dict[str, AxisPlacement], axes: Any, place: AxisPlacement) -> None:
        for leaf in self._leaves(axes):
            if leaf in places:
                self._fail("TS0603", f"axis `{leaf}` is used twice in this type", axes)
            places[leaf] = place

    def _factor(self, token: Any) -> Factor:
        name = str(token)
        if name.isdigit():
            return Factor(name, int(name))
        if name in STEP_EXTENTS:
            return Factor(name, None)
        if name not in self.sizes:
            self._fail("TS0602", f"`sizes` has no `{name}`{near(name, self.sizes)}", token)
        return Factor(name, self.sizes[name])

    def _leaves(self, tree: Any) -> tuple[str, ...]:
        """The active leaf axes of `tp` or `kv*q`."""
        found: list[str] = []
        for token in tree.children:
            leaves = self.mesh.leaves(str(token))
            if leaves is None:
                self._fail("TS0602", f"the mesh has no axis `{token}`{near(str(token), self.mesh.names())}", token)
            found.extend(leaves)
        return tuple(n for n in found if n in {a.name for a in self.mesh.active})

    def _element_type(self, token: Any) -> None:
        if str(token) not in SIZES:
            self._fail("TS0602", f"there is no element type `{token}`{near(str(token), SIZES)}", token)

    def _fail(self, code: str, message: str, at: Any) -> NoReturn:
        where = at.meta if isinstance(at, Tree) else at
        raise CompileError(Diagnostic(code, message, Span(self.source, where.line, where.column, where.end_line, where.end_column)))


def _split(tree: Any) -> tuple[Any, ...]:
    """The span of a line or None, then its other parts."""
    *rest, last = tree.children
    is_span = isinstance(last, Token) and last.type == "SPAN"
    return (last, *rest) if is_span else (None, *rest, last)


def _window(rest: tuple[Any, ...]) -> int:
    """Of an input: what follows its type says it, or there is none."""
    return int(_mark(rest, "window") or 0)


def _mark(rest: tuple[Any, ...], name: str) -> Any:
    """What a mark of an input says, None without it; after its marks comes the line itself."""
    return next((mark.children[0] for mark in rest[:-1] if mark.data == name), None)


def _join(parts: tuple[NodeType, ...], *, is_weight: bool) -> GraphType:
    return parts[0] if len(parts) == 1 else JoinedType(parts, joining_dimension(parts, is_weight=is_weight))


def _constant(tree: Any) -> Any:
    value = tree.children[0]
    if isinstance(value, Tree):
        return [_constant(v) for v in value.children]
    match value.type:
        case "INT":
            return int(value)
        case "FLOAT":
            return float(value)
        case "BOOL":
            return str(value) == "true"
        case _:
            return str(value)[1:-1]
