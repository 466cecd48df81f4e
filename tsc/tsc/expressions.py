"""Expressions of a module's body: static values, arithmetic, calls of functions and modules, each an operation with its shapes checked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from tsc import ast
from tsc.declarations import Declarations, formatted
from tsc.diagnostics import CompileError, Diagnostic, Note, near
from tsc.program import CacheDeclaration, CallTarget, Instance, Operation, Value, stored_values
from tsc.signatures import Signature
from tsc.spans import Span
from tsc.static import FUNCTIONS, UNKNOWN, Static, evaluate
from tsc.stdlib import BUILTINS, COMPOSITES, Mismatch
from tsc.types import Factor


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in scope: the index of its value, and the cache it is when it is one."""

    value: int
    cache: CacheDeclaration | None = None


Bound = Tensor | Static


class Instances(Protocol):
    """The modules of a file, and their instances so far."""

    @property
    def modules(self) -> Mapping[str, ast.Module]: ...
    @property
    def instances(self) -> Mapping[str, Instance]: ...
    @property
    def declarations(self) -> Declarations: ...
    def instantiate(self, module: ast.Module, statics: Mapping[str, Static], span: Span) -> str: ...


@dataclass(frozen=True, slots=True)
class _Build:
    """Writes a composite's operations: where it is called, what its values are called, what the author wrote."""

    expressions: Expressions
    span: Span
    name: str
    written: str

    def __call__(self, op: str, *operands: Tensor, **statics: Static) -> Tensor:
        return self.expressions.apply(op, list(operands), statics, self.span, self.name, written=self.written)

    def block_width(self, x: Tensor) -> Static:
        return self.expressions.block_width(x)


class Expressions:
    """The values of one instance, and what a scope's names are bound to. An expression adds operations to the instance."""

    def __init__(self, model: Instances, instance: Instance, statics: Mapping[str, Static]) -> None:
        self.model = model
        self.declarations = model.declarations
        self.instance = instance
        self.scope: dict[str, Bound] = {**self.declarations.names, **statics}
        self.appended: set[int] = set()  # caches that have the step's keys and values

    def static(self, expr: ast.Expr) -> Static:
        is_config_key = isinstance(expr, ast.Name) and expr.text not in self.scope  # `when tie_word_embeddings`
        value = self._evaluate(expr) if is_config_key else self.expr(expr, "")
        if isinstance(value, Tensor):
            raise error_at("TS0206", "a config value is needed here, and this is a tensor", expr.span)
        return value

    def count(self, expr: ast.Expr, what: str) -> Static:
        """A whole number or UNKNOWN; none is 0."""
        value = self.static(expr)
        if value is None:
            return 0
        if value is not UNKNOWN and (not isinstance(value, int) or isinstance(value, bool)):
            raise error_at("TS0210", f"{what} is a whole number, and this is {value!r}", expr.span)
        return value

    def tensor(self, expr: ast.Expr, name: str = "") -> Tensor:
        value = self.expr(expr, name)
        if not isinstance(value, Tensor):
            raise error_at("TS0206", f"a tensor is needed here, and this is {_static_text(value)}", expr.span)
        return value

    def expr(self, expr: ast.Expr, name: str) -> Bound:
        """The value of an expression; `name` is what to call it in plans and graphs."""
        match expr:
            case ast.Name() if isinstance(self.scope.get(expr.text), Tensor):
                return self.scope[expr.text]
            case ast.Name() if expr.text not in self.scope:
                raise error_at("TS0201", f"`{expr.text}` is not in scope{near(expr.text, self.scope)}", expr.span)
            case ast.Call():
                return self._call(expr, name)
            case ast.Index() if isinstance(base := self._maybe_tensor(expr.value), Tensor):
                if len(expr.indices) != 1:
                    raise error_at("TS0205", "rows are taken by one i32 vector", expr.span)
                return self.apply("take_rows", [base, self.tensor(expr.indices[0])], {}, expr.span, name)
            case ast.Binary() if expr.operator in ("+", "*", "/"):
                left, right = self.expr(expr.left, ""), self.expr(expr.right, "")
                if isinstance(left, Tensor) or isinstance(right, Tensor):
                    return self._arithmetic(expr, left, right, name)
        return self._evaluate(expr)

    def _evaluate(self, expr: ast.Expr) -> Static:
        tensor = next((n for n in _names(expr) if isinstance(self.scope.get(n.text), Tensor)), None)
        if tensor is not None:
            raise error_at("TS0206", f"`{tensor.text}` is a tensor, and this is computed before there are any", tensor.span)
        return evaluate(expr, {k: v for k, v in self.scope.items() if not isinstance(v, Tensor)}, self.declarations.config)

    def _maybe_tensor(self, expr: ast.Expr) -> Bound:
        if isinstance(expr, ast.Name):
            return self.scope.get(expr.text)
        return self.expr(expr, "") if isinstance(expr, ast.Call | ast.Binary | ast.Index) and self._has_tensor(expr) else None

    def _has_tensor(self, expr: ast.Expr) -> bool:
        match expr:
            case ast.Name():
                return isinstance(self.scope.get(expr.text), Tensor)
            case ast.Binary():
                return self._has_tensor(expr.left) or self._has_tensor(expr.right)
            case ast.Index():
                return self._has_tensor(expr.value)
            case ast.Call():
                return any(self._has_tensor(a.value) for a in expr.arguments)
            case _:
                return False

    def _arithmetic(self, expr: ast.Binary, left: Bound, right: Bound, name: str) -> Tensor:
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            if expr.operator == "/":
                raise error_at("TS0205", "tensors are added and multiplied, not divided", expr.span)
            return self.apply("add" if expr.operator == "+" else "mul", [left, right], {}, expr.span, name)
        tensor, number = (left, right) if isinstance(left, Tensor) else (right, left)
        divides_by_tensor = expr.operator == "/" and isinstance(right, Tensor)
        if expr.operator == "+" or divides_by_tensor or (number is not UNKNOWN and not isinstance(number, int | float)):
            raise error_at("TS0205", "a tensor can be multiplied or divided by a number, nothing else", expr.span)
        if expr.operator == "/" and number == 0:
            raise error_at("TS0210", "this divides by 0", expr.span)
        try:
            factor: Static = float(number) ** (1 if expr.operator == "*" else -1) if isinstance(number, int | float) else number
        except OverflowError:
            raise error_at("TS0210", "this number is too large", expr.span) from None
        assert isinstance(tensor, Tensor)
        return self.apply("scale", [tensor], {"factor": factor}, expr.span, name)

    def _call(self, call: ast.Call, name: str) -> Bound:
        function = call.function
        if isinstance(function, ast.Attribute) and function.name == "append":
            cache = self.tensor(function.value)
            if cache.cache is None or cache.cache.kind != "paged":
                raise error_at("TS0206", "`append` is for a cache of pages", function.span)
            if cache.cache.value in self.appended:  # the second would overwrite the step's rows of the first
                raise error_at("TS0205", f"a step appends to `{self._name(cache)}` once", call.span)
            self.appended.add(cache.cache.value)
            arguments = [cache, *(self.tensor(a.value) for a in call.arguments)]
            is_latent = len(self.instance.values[cache.value].shape.factors) == 2  # pages and a row
            op = "latent_append" if is_latent else "cache_append"
            return Tensor(self.apply(op, arguments, {}, call.span, f"{self._name(cache)}_next").value, cache.cache)
        if not isinstance(function, ast.Name):
            raise error_at("TS0202", "only a function or a module can be called", function.span)
        if function.text in self.model.modules:
            return self._module_call(call, self.model.modules[function.text], name)
        if function.text == "unflatten":
            return self._unflatten(call, name)
        if function.text in COMPOSITES:
            values = self.composite(call, function.text, (name,))
            if len(values) > 1:
                raise error_at("TS0205", f"`{function.text}` gives {len(values)} values: `let a, b = {function.text}(...)`", call.span)
            return values[0]
        if function.text in BUILTINS:
            return self._builtin_call(call, function.text, name)
        if function.text in FUNCTIONS:
            return self._evaluate(call)
        known = [*BUILTINS, *COMPOSITES, *self.model.modules]
        raise error_at("TS0202", f"there is no op or module `{function.text}`{near(function.text, known)}", function.span)

    def composite(self, call: ast.Call, op: str, names: Sequence[str]) -> tuple[Tensor, ...]:
        """A function that is written with others; its last operation has the name of what it gives."""
        composite = COMPOSITES[op]
        defaults = {name: default for name, default in composite.statics.items() if default is not ...}
        bound = self._arguments(call, op, composite.parameters, defaults)
        tensors = [self._need_tensor(bound[p], p, op, _argument_span(call, composite.parameters, p)) for p in composite.tensors]
        statics = {p: self._need_static(bound[p], p, op, call, composite.parameters) for p in composite.statics}
        made = composite.expand(_Build(self, call.span, names[0] or op, op), *tensors, **statics)
        return made if isinstance(made, tuple) else (made,)

    def block_width(self, x: Tensor) -> Static:
        """How wide the blocks of a row are that `top_k` searches apart: those of the rank that has the least of the row, which is
        as many ranks as a weight of this module has that dimension split over, or a parameter."""
        whole = self.instance.values[x.value].shape.factors[-1] if self.instance.values[x.value].shape.factors else None
        if whole is None or whole.size is None:
            return UNKNOWN
        most = 1
        for value in self.instance.values:
            for index, factor in enumerate(value.shape.factors):
                if factor.agrees(whole) and value.placement is not None:
                    axes = [a.known_size for a, p in zip(self.declarations.mesh.active, value.placement, strict=True) if p == index]
                    most = max(most, math.prod(axes))
        return whole.size // most

    def _builtin_call(self, call: ast.Call, op: str, name: str) -> Tensor:
        builtin = BUILTINS[op]
        if op == "slice":
            raise error_at("TS0205", "parts of a value are taken by `let a, b = split(x, F, A, B)`", call.span)
        names = builtin.parameters
        defaults: dict[str, Static] = {k: v for k, v in builtin.statics.items() if v is not ...}
        bound = self._arguments(call, op, names, defaults | dict.fromkeys(builtin.tensors[builtin.fewest :]))
        given = [p for i, p in enumerate(builtin.tensors) if i < builtin.fewest or bound[p] is not None]
        tensors = [self._need_tensor(bound[p], p, op, _argument_span(call, names, p)) for p in given]
        statics = {p: self._need_static(bound[p], p, op, call, names) for p in builtin.statics}
        for parameter, tensor in zip(given, tensors, strict=True):
            if builtin.windowed and parameter == "cache" and (tensor.cache is None or self.instance.values[tensor.value].kind == "cache"):
                raise error_at("TS0206", f"`{op}` reads a cache: {op}(q, kv.append(k, v), ...)", call.span)
            if builtin.stateful and parameter == "state":
                self._take_state(op, tensor, _argument_span(call, names, parameter))
        return self.apply(op, tensors, statics, call.span, name)

    def _take_state(self, op: str, state: Tensor, span: Span) -> None:
        """A step overwrites a state, so that one function has it."""
        if state.cache is None or state.cache.kind != "state":
            raise error_at("TS0206", f"`{op}` has a state, as declared by `cache NAME: state ...`", span)
        if state.value in self.appended:
            raise error_at("TS0205", f"a step overwrites `{self._name(state)}` once", span)
        self.appended.add(state.value)

    def _unflatten(self, call: ast.Call, name: str) -> Tensor:
        """`unflatten(x, F, A, B)`: the dimension F of x as A and B, major to minor."""
        arguments = [a.value for a in call.arguments]
        names = [a for a in arguments[1:] if isinstance(a, ast.Name | ast.Constant)]
        if len(names) < 3 or len(names) + 1 != len(arguments) or any(a.name for a in call.arguments):
            text = "`unflatten` takes a value, one of its dimensions and the factors that it is made of: `unflatten(x, F, A, B)`"
            raise error_at("TS0205", text, call.span)
        x = self.tensor(arguments[0])
        whole, *parts = (self.factor(a) for a in names)
        dim = self.dimension_of(x, whole, names[0].span)
        return self.apply("unflatten", [x], {"dim": dim, "parts": tuple(parts)}, call.span, name)

    def dimension_of(self, x: Tensor, factor: Factor, span: Span) -> int:
        """Which dimension of x that factor is. Raises CompileError."""
        shape = self.instance.values[x.value].shape
        dim = next((i for i, f in enumerate(shape.factors) if f.agrees(factor)), None)
        if dim is None or factor.is_dynamic:
            raise error_at("TS0204", f"{shape.text()} has no dimension `{factor.name}` to split", span)
        return dim

    def apply(self, op: str, operands: list[Tensor], statics: Mapping[str, Static], span: Span, name: str, *, written: str = "") -> Tensor:
        builtin = BUILTINS[op]
        if not builtin.fewest <= len(operands) <= len(builtin.tensors):
            raise error_at("TS0205", f"`{op}` takes {len(builtin.tensors)} tensors, got {len(operands)}", span)
        shapes = [self.instance.values[t.value].shape for t in operands]
        try:
            typing = builtin.infer(shapes, statics)
        except Mismatch as error:
            if error.operand is None:
                raise error_at("TS0210", str(error), span) from None
            culprits = [self.instance.values[t.value] for t in operands]
            order = [error.operand, *(i for i in range(len(operands)) if i != error.operand)]
            notes = tuple(Note(_origin(culprits[i]), culprits[i].span) for i in order)
            raise CompileError(Diagnostic("TS0204", str(error), span, notes=notes)) from None
        attributes = dict(typing.attributes)
        for attribute, number in attributes.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise error_at("TS0210", f"`{attribute}` of `{op}` is {number}, which is no finite number", span)
        for parameter, operand in zip(builtin.tensors, operands, strict=False):
            if builtin.windowed and parameter == "cache" and operand.cache is not None:
                attributes["window"] = operand.cache.window
        result = self.add_value(Value(name or op, "result", typing.shape, span))
        if op != "slice" and operands and stored_values(self.instance).issuperset(t.value for t in operands):
            text = f"`{written or op}` of weights alone has the same result in every step, and would be computed in each"
            raise error_at("TS0217", text, span)
        indices = tuple(t.value for t in operands)
        self.instance.operations.append(Operation(op, indices, result, typing.signature, span, attributes, written))
        return Tensor(result)

    def _module_call(self, call: ast.Call, module: ast.Module, name: str) -> Tensor:
        if module.is_entry:
            raise error_at("TS0202", "an entry cannot be called", call.span)
        names = tuple(p.name for p in module.parameters)
        bound = self._arguments(call, module.name, names, {})
        statics = {p.name: self._need_static(bound[p.name], p.name, module.name, call, names) for p in module.parameters if p.type is None}
        key = self.model.instantiate(module, statics, call.span)
        callee = self.model.instances[key]
        typed = [p for p in module.parameters if p.type is not None]
        operands = [self._need_tensor(bound[p.name], p.name, module.name, _argument_span(call, names, p.name)) for p in typed]
        for operand, declared, index in zip(operands, typed, callee.parameters, strict=True):
            found, wanted = self.instance.values[operand.value].shape, callee.values[index].shape
            if not found.agrees(wanted):
                message = f"`{declared.name}` of `{module.name}` is {wanted.text()}, got {found.text()}"
                where = _argument_span(call, names, declared.name)
                raise CompileError(Diagnostic("TS0204", message, where, notes=(Note("declared here", declared.span),)))
        shape = callee.values[callee.result].shape
        result = self.add_value(Value(name or module.name.lower(), "result", shape, call.span))
        target = CallTarget(key, formatted(call.prefix or "", self.scope, call.span))
        signature = Signature(tuple((None,) * len(callee.values[p].shape.factors) for p in callee.parameters), (None,) * len(shape.factors))
        operation = Operation("call", tuple(t.value for t in operands), result, signature, call.span, {"target": target})
        self.instance.operations.append(operation)
        return Tensor(result)

    def _arguments(self, call: ast.Call, callee: str, names: tuple[str, ...], defaults: Mapping[str, Static]) -> dict[str, Bound]:
        bound: dict[str, Bound] = {}
        for position, argument in enumerate(call.arguments):
            name = argument.name if argument.name is not None else (names[position] if position < len(names) else None)
            if name is None or name not in names:
                extra = f"no parameter `{name}`{near(name, names)}" if name else f"{len(names)} parameters, not {len(call.arguments)}"
                raise error_at("TS0205", f"`{callee}` has {extra}", argument.span)
            if name in bound:
                raise error_at("TS0205", f"`{name}` of `{callee}` is given twice", argument.span)
            bound[name] = self.expr(argument.value, "")
        lacking = [n for n in names if n not in bound and n not in defaults]
        if lacking:
            raise error_at("TS0205", f"`{callee}` needs {', '.join(f'`{n}`' for n in lacking)}", call.span)
        return {**defaults, **bound}

    def factor(self, node: ast.Name | ast.Constant) -> Factor:
        name = node.text if isinstance(node, ast.Name) else node.value
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise error_at("TS0201", f"{name!r} is no dimension", node.span)
        return self.declarations.factor(ast.FactorRef(name, span=node.span))

    def _need_tensor(self, bound: Bound, parameter: str, callee: str, span: Span) -> Tensor:
        if not isinstance(bound, Tensor):
            raise error_at("TS0206", f"`{parameter}` of `{callee}` is a tensor, and this is {_static_text(bound)}", span)
        return bound

    def _need_static(self, bound: Bound, parameter: str, callee: str, call: ast.Call, names: tuple[str, ...]) -> Static:
        if isinstance(bound, Tensor):
            where = _argument_span(call, names, parameter)
            raise error_at("TS0206", f"`{parameter}` of `{callee}` is a config value, and this is a tensor", where)
        return bound

    def add_value(self, value: Value) -> int:
        self.instance.values.append(value)
        return len(self.instance.values) - 1

    def _name(self, tensor: Tensor) -> str:
        return self.instance.values[tensor.value].name


def _names(node: ast.Node) -> Iterator[ast.Name]:
    """The names that an expression reads."""
    if isinstance(node, ast.Name):
        yield node
    for field in fields(node):
        value = getattr(node, field.name)
        for child in value if isinstance(value, tuple) else (value,):
            if isinstance(child, ast.Node):
                yield from _names(child)


def _argument_span(call: ast.Call, names: tuple[str, ...], parameter: str) -> Span:
    """Where a call gives a parameter; the call itself where a default does."""
    position = names.index(parameter)
    given = (a.span for i, a in enumerate(call.arguments) if a.name == parameter or (a.name is None and i == position))
    return next(given, call.span)


def _static_text(value: Static) -> str:
    return "a config value" if value is UNKNOWN else f"the config value {value!r}"


def _origin(value: Value) -> str:
    return f"{value.shape.text()} comes from here" if value.kind == "result" else f"`{value.name}` is declared here as {value.shape.text()}"


def error_at(code: str, message: str, span: Span) -> CompileError:
    return CompileError(Diagnostic(code, message, span))
