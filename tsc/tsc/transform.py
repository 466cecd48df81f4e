"""Turns lark's parse tree into the syntax tree of ast.py, with a span on every node.

Does not: resolve names or check types. Finds what is declared twice, since only here the names' own places are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from lark import Token, Tree

from tsc import ast
from tsc.diagnostics import CompileError, Diagnostic, Note
from tsc.spans import Source, Span

MAX_DEPTH = 100
MAX_INT = 2**63 - 1

OPERATORS: dict[str, Any] = {
    "default": "??",
    "or": "||",
    "and": "&&",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "modulo": "%",
    "power": "**",
}
ELEMENT_TYPES = {"int": "i32"}

# lark is untyped: its trees and tokens are Any, and only this file touches them.
Scope = dict[str, tuple[str, Span]]


def to_model_file(tree: Any, source: Source) -> ast.ModelFile:
    """Build the syntax tree, or raise CompileError with every duplicate declaration."""
    build = _Build(source)
    model = build.file(tree)
    if build.found:
        raise CompileError(*sorted(build.found, key=lambda d: (d.span.line, d.span.column) if d.span else (0, 0)))
    return model


class _Build:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.found: list[Diagnostic] = []
        self.depth = 0

    # --- places and names

    def span(self, node: Any) -> Span:
        at = node.meta if isinstance(node, Tree) else node
        return Span(self.source, at.line, at.column, at.end_line, at.end_column)

    def declare(self, scope: Scope, token: Any, what: str) -> str:
        """Return the name; report it when the scope has it already."""
        name = str(token)
        if name in scope:
            was, span = scope[name]
            article = "an" if was[0] in "aeiou" else "a"
            note = Note(f"the first is {article} {was}, here", span)
            message = f"`{name}` is declared twice"
            self.found.append(Diagnostic("TS0117", message, self.span(token), f"{what} declared again", (note,)))
        else:
            scope[name] = (what, self.span(token))
        return name

    def names(self, tokens: Iterable[Any], what: str) -> tuple[str, ...]:
        scope: Scope = {}
        return tuple(self.declare(scope, token, what) for token in tokens)

    # --- declarations

    def file(self, tree: Any) -> ast.ModelFile:
        blocks: dict[str, list[Any]] = {"model": [], "config": [], "mesh": []}
        modules = []
        scope: Scope = {}
        for item in tree.children:
            if item.data in blocks:
                blocks[item.data] = item.children
            else:
                modules.append(self.module(item, scope))
        lines = self.source.text.split("\n")
        return ast.ModelFile(
            self.names(blocks["model"], "architecture"),
            self.bindings([t for t in blocks["config"] if t.data == "binding"], {}, "config name"),
            tuple(ast.Requirement(self.expr(t.children[0]), span=self.span(t)) for t in blocks["config"] if t.data == "requirement"),
            tuple(ast.Unused(str(t.children[0])[1:-1], span=self.span(t)) for t in blocks["config"] if t.data == "unused"),
            self.axes(blocks["mesh"]),
            tuple(modules),
            span=Span(self.source, 1, 1, len(lines), len(lines[-1]) + 1),
        )

    def bindings(self, trees: list[Any], scope: Scope, what: str) -> tuple[ast.Binding, ...]:
        return tuple(
            ast.Binding(self.declare(scope, tree.children[0], what), self.expr(tree.children[1]), span=self.span(tree)) for tree in trees
        )

    def axes(self, trees: list[Any]) -> tuple[ast.Axis, ...]:
        scope: Scope = {}
        axes = []
        for tree in trees:
            name, *rest = tree.children
            product: tuple[str, ...] = tuple(map(str, rest[0].children)) if rest else ()
            bindings = self.bindings(rest[1].children, {}, "name after `where`") if len(rest) > 1 else ()
            axes.append(ast.Axis(self.declare(scope, name, "mesh axis"), product, bindings, span=self.span(tree)))
        return tuple(axes)

    def module(self, tree: Any, modules: Scope) -> ast.Module:
        name, parameters, result, *strict, block = tree.children
        scope: Scope = {}
        return ast.Module(
            self.declare(modules, name, tree.data),
            tuple(self.parameter(p, scope) for p in parameters.children),
            self.type(result),
            self.block(block, scope),
            is_entry=tree.data == "entry",
            strict=bool(strict),
            span=self.span(tree),
        )

    def parameter(self, tree: Any, scope: Scope) -> ast.Parameter:
        name, *type_ = tree.children
        return ast.Parameter(self.declare(scope, name, "parameter"), self.type(type_[0]) if type_ else None, span=self.span(tree))

    # --- types

    def type(self, tree: Any) -> ast.TensorType:
        dtype = None
        dimensions = []
        partials: list[ast.Partial] = []
        for child in tree.children:
            if isinstance(child, Token):
                dtype = ELEMENT_TYPES.get(str(child), str(child))
            elif child.data == "dimension":
                dimensions.append(ast.Dimension(tuple(self.factor(f) for f in child.children), span=self.span(child)))
            else:
                reduction, *axes = child.children
                places = [self.span(a) for a in axes]
                places[0] = replace(places[0], line=reduction.line, column=reduction.column)
                partials.extend(ast.Partial(str(reduction), str(a.children[0]), span=p) for a, p in zip(axes, places, strict=True))
        return ast.TensorType(dtype, tuple(dimensions), tuple(partials), span=self.span(tree))

    def factor(self, tree: Any) -> ast.FactorRef:
        name, *axis = tree.children
        of: str | int = self.integer(name) if name.type == "INT" else str(name)
        return ast.FactorRef(of, str(axis[0]) if axis else None, span=self.span(tree))

    # --- statements

    def block(self, tree: Any, scope: Scope) -> tuple[ast.Statement, ...]:
        return tuple(self.statement(s, scope) for s in tree.children)

    def statement(self, tree: Any, scope: Scope) -> ast.Statement:
        make: Callable[[Any, Scope, Span], ast.Statement] = getattr(self, f"statement_{tree.data}")
        self.deeper(tree)
        statement = make(tree, scope, self.span(tree))
        self.depth -= 1
        return statement

    def statement_weight(self, tree: Any, scope: Scope, span: Span) -> ast.Weight:
        name, type_, tensor, *rest = tree.children
        declared = self.declare(scope, name, "weight")
        clauses = {clause.data: clause.children for clause in rest}
        other, *inner = clauses.get("tied", [None])
        when = inner[0].children if inner else clauses.get("when")
        return ast.Weight(
            declared,
            self.type(type_),
            str(tensor)[1:-1],
            None if other is None else str(other),
            self.expr(when[0]) if when else None,
            self.expr(clauses["from"][0]) if "from" in clauses else None,
            span=span,
        )

    def statement_cache(self, tree: Any, scope: Scope, span: Span) -> ast.Cache:
        name, kind, *rest = tree.children
        axis = str(rest.pop(0).children[0]) if isinstance(rest[0], Tree) and rest[0].data == "pages" else None
        type_, *window = rest
        declared = self.declare(scope, name, "cache")
        return ast.Cache(declared, str(kind), self.type(type_), self.expr(window[0]) if window else None, axis, span=span)

    def statement_let(self, tree: Any, scope: Scope, span: Span) -> ast.Let:
        names = [c for c in tree.children if isinstance(c, Token)]
        *type_, value = tree.children[len(names) :]
        return ast.Let(self.names(names, "name"), self.type(type_[0]) if type_ else None, self.expr(value), span=span)

    def statement_keep(self, tree: Any, scope: Scope, span: Span) -> ast.Keep:
        name, type_, value = tree.children
        return ast.Keep(str(name), self.type(type_), self.expr(value), span=span)

    def statement_assign(self, tree: Any, scope: Scope, span: Span) -> ast.Assign:
        return ast.Assign(str(tree.children[0]), self.expr(tree.children[1]), span=span)

    def statement_return(self, tree: Any, scope: Scope, span: Span) -> ast.Return:
        return ast.Return(tuple(map(self.expr, tree.children)), span=span)

    def statement_for(self, tree: Any, scope: Scope, span: Span) -> ast.For:
        variable, first, last, carried, body = tree.children
        names = self.names(carried.children, "carried name")
        return ast.For(str(variable), self.expr(first), self.expr(last), names, self.block(body, scope), span=span)

    def statement_if(self, tree: Any, scope: Scope, span: Span) -> ast.If:
        """Only one branch comes to be, so both may declare a name; what follows may not."""
        condition, then, *rest = tree.children
        value = self.expr(condition)
        taken, other = dict(scope), dict(scope)
        then_body = self.block(then, taken)
        otherwise: tuple[ast.Statement, ...] = ()
        if rest:
            otherwise = (self.statement(rest[0], other),) if rest[0].data == "if" else self.block(rest[0], other)
        scope.update(other | taken)
        return ast.If(value, then_body, otherwise, span=span)

    # --- expressions

    def expr(self, tree: Any) -> ast.Expr:
        self.deeper(tree)
        expr = self._expr(tree, self.span(tree))
        self.depth -= 1
        return expr

    def _expr(self, tree: Any, span: Span) -> ast.Expr:
        kind, children = tree.data, tree.children
        if kind == "name":
            return ast.Name(str(children[0]), span=span)
        if kind in ("integer", "float", "string", "true", "false", "none"):
            return ast.Constant(self.literal(kind, children), span=span)
        if kind in OPERATORS:
            return ast.Binary(OPERATORS[kind], self.expr(children[0]), self.expr(children[1]), span=span)
        if kind in ("negate", "not"):
            return ast.Unary("-" if kind == "negate" else "!", self.expr(children[0]), span=span)
        if kind == "conditional":
            condition, then, otherwise = map(self.expr, children)
            return ast.Conditional(condition, then, otherwise, span=span)
        if kind == "attribute":
            return ast.Attribute(self.expr(children[0]), str(children[1]), span=span)
        if kind == "index":
            value, *indices = map(self.expr, children)
            return ast.Index(value, tuple(indices), span=span)
        if kind == "call":
            return ast.Call(self.expr(children[0]), self.arguments(children[1]), span=span)
        assert kind == "module_call", kind
        name, prefix, arguments = children
        return ast.Call(ast.Name(str(name), span=self.span(name)), self.arguments(arguments), str(prefix)[2:-2], span=span)

    def arguments(self, tree: Any) -> tuple[ast.Argument, ...]:
        scope: Scope = {}
        arguments = []
        for child in tree.children:
            (value,) = child.children[-1:]
            named = child.data == "named_argument"
            name = self.declare(scope, child.children[0], "argument") if named else None
            arguments.append(ast.Argument(name, self.expr(value), span=self.span(child)))
        return tuple(arguments)

    def literal(self, kind: str, children: list[Any]) -> int | float | str | bool | None:
        if kind == "integer":
            return self.integer(children[0])
        if kind == "float":
            value = float(children[0])
            return self.too_large(children[0]) if math.isinf(value) else value
        if kind == "string":
            return str(children[0])[1:-1]
        return {"true": True, "false": False, "none": None}[kind]

    def integer(self, token: Any) -> int:
        digits = token.lstrip("0")
        return self.too_large(token) if len(digits) > 19 or int(token[-19:]) > MAX_INT else int(token[-19:])

    def too_large(self, token: Any) -> int:
        self.found.append(Diagnostic("TS0118", "this number is too large: integers go up to 2**63 - 1", self.span(token)))
        return 0

    def deeper(self, tree: Any) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fix = "name a part of it with `let`"
            raise CompileError(Diagnostic("TS0119", f"this nests more than {MAX_DEPTH} deep", self.span(tree), fixes=(fix,)))
