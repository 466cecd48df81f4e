"""From the syntax tree, a config and mesh sizes to the typed program: names, shapes, static control flow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, assert_never

from tsc import ast
from tsc.declarations import Declarations, formatted
from tsc.diagnostics import CompileError, Diagnostic, Note, near
from tsc.program import CacheDeclaration, CallTarget, Instance, Operation, TypedModel, Value, WeightDeclaration
from tsc.signatures import Signature
from tsc.spans import Span
from tsc.static import FUNCTIONS, UNKNOWN, Static, evaluate
from tsc.stdlib import BUILTINS, COMPOSITES, Mismatch
from tsc.types import Factor, Placement, Shape

STEP_INPUTS = {"ids": ("i32", "T"), "positions": ("i32", "T"), "last": ("i32", "S")}
"""What a runtime feeds to an entry, by parameter name: element type and dimension."""


def elaborate(file: ast.ModelFile, config: Mapping[str, Any] | None = None, mesh: Mapping[str, int] | None = None) -> TypedModel:
    """Bind config and mesh (`None`: unknown sizes), check every instance that the entry reaches. Raises CompileError."""
    declarations = Declarations.of(file, config, mesh)
    entries = [m for m in file.modules if m.is_entry]
    if not entries:
        raise CompileError(Diagnostic("TS0213", "the file has no `entry`", file.span, fixes=("add `entry decode(ids: i32[T], ...)`",)))
    model = _Model(file, declarations)
    key = model.instantiate(entries[0], {}, entries[0].span)
    return TypedModel(
        file.architectures,
        declarations.mesh,
        dict(declarations.names),
        dict(model.instances),
        model.instances[key].name,
        declarations.unused,
    )


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in scope: the index of its value, and the cache it is when it is one."""

    value: int
    cache: CacheDeclaration | None = None


Bound = Tensor | Static


class _Model:
    """Instances by module and static arguments; a module is checked once for each distinct pair."""

    def __init__(self, file: ast.ModelFile, declarations: Declarations) -> None:
        self.modules = {m.name: m for m in file.modules}
        self.declarations = declarations
        self.instances: dict[str, Instance] = {}
        self._keys: dict[str, str] = {}
        self._active: list[str] = []

    def instantiate(self, module: ast.Module, statics: Mapping[str, Static], span: Span) -> str:
        key = f"{module.name}{sorted((k, repr(v)) for k, v in statics.items())}"
        if key not in self._keys:
            if module.name in self._active:
                raise CompileError(Diagnostic("TS0205", f"module `{module.name}` calls itself", span))
            self._active.append(module.name)
            count = sum(i.module == module.name for i in self.instances.values())
            instance = Instance(f"{module.name}_{count}" if count else module.name, module.name, module.strict)
            _Body(self, module, instance, statics).run()
            self._active.pop()
            self.instances[instance.name] = instance
            self._keys[key] = instance.name
        return self._keys[key]


class _Body:
    """Elaborates one module into one instance."""

    def __init__(self, model: _Model, module: ast.Module, instance: Instance, statics: Mapping[str, Static]) -> None:
        self.model = model
        self.declarations = model.declarations
        self.module = module
        self.instance = instance
        self.scope: dict[str, Bound] = {**self.declarations.names, **statics}
        self.returned = False
        self.appended: set[int] = set()  # caches that have the step's keys and values
        self.stored: set[int] = set()  # weights and parts of them

    def run(self) -> None:
        result, placement = self.declarations.type_of(self.module.result)
        gives_logits = not result.dtype and len(result.factors) == 2 and result.factors[0].name == "S"
        if self.module.is_entry and not gives_logits and result.text() != "i32[S]":
            message = f"an entry returns each sequence's logits, [S, V], or its next token, i32[S], and this declares {result.text()}"
            raise _error("TS0213", message, self.module.result.span)
        for parameter in self.module.parameters:
            if parameter.type is not None:
                self._parameter(parameter)
        self._statements(self.module.body)
        if not self.returned:
            raise _error("TS0213", f"`{self.module.name}` returns nothing, and declares {result.text()}", self.module.span)
        returned = self.instance.values[self.instance.result].shape
        if not returned.agrees(result):
            assert self.instance.result_span is not None
            raise CompileError(
                Diagnostic(
                    "TS0213",
                    f"`{self.module.name}` returns {returned.text()}, and declares {result.text()}",
                    self.instance.result_span,
                    notes=(Note("the result is declared here", self.module.result.span),),
                )
            )
        self.instance.result_placement = placement

    # --- declarations -------------------------------------------------------------------------------------------

    def _parameter(self, parameter: ast.Parameter) -> None:
        assert parameter.type is not None
        shape, placement = self.declarations.type_of(parameter.type)
        if self.module.is_entry and (parameter.name not in STEP_INPUTS or shape.text() != "{}[{}]".format(*STEP_INPUTS[parameter.name])):
            known = ", ".join(f"{n}: {t}[{d}]" for n, (t, d) in STEP_INPUTS.items())
            raise _error("TS0205", f"an entry takes what a step brings, of {known}; not `{parameter.name}: {shape.text()}`", parameter.span)
        if self.module.is_entry and any(place is not None for place in placement):
            raise _error("TS0215", f"a step brings the same `{parameter.name}` to every rank", parameter.span)
        kind = "step" if self.module.is_entry else "parameter"
        value = self._value(Value(parameter.name, kind, shape, parameter.span, placement))  # type: ignore[arg-type]
        self.instance.parameters.append(value)
        self.scope[parameter.name] = Tensor(value)

    def _stored(self, node: ast.TensorType, what: str) -> tuple[Shape, Placement]:
        shape, placement = self.declarations.type_of(node, stored=what == "a weight")
        if node.partials:
            raise _error("TS0215", f"{what} is stored, and what is stored is not pending a {node.partials[0].reduction}", node.span)
        dynamic = [f.name for f in shape.factors if f.is_dynamic]
        if dynamic:
            raise _error("TS0204", f"{what} is stored, and `{dynamic[0]}` is known only when a step runs", node.span)
        return shape, placement

    def _weight(self, weight: ast.Weight) -> None:
        shape, placement = self._stored(weight.type, "a weight")
        tied = None
        if weight.tied is not None:
            when = True if weight.condition is None else self._static(weight.condition)
            tied = weight.tied if when and when is not UNKNOWN else None
            other = self.scope.get(weight.tied)
            if not isinstance(other, Tensor):
                raise _error("TS0201", f"no weight `{weight.tied}` is declared above{near(weight.tied, self.scope)}", weight.span)
            found = self.instance.values[other.value]
            if found.kind != "weight":
                raise _error("TS0201", f"`{weight.tied}` is no weight, and only a weight can be tied to", weight.span)
            if not found.shape.agrees(shape) or found.placement != placement:
                text = found.shape.text(self.declarations.mesh, found.placement or ())
                raise _error("TS0204", f"tied weights have one type, and `{weight.tied}` is {text}", weight.type.span)
        value = self._value(Value(weight.name, "weight", shape, weight.span, placement))
        stacked = shape.dimensions()[0][0].name if shape.factors and shape.groups[0] == 1 else ""
        tensor = formatted(weight.tensor, self.scope, weight.span, keep=stacked)
        self.instance.weights.append(WeightDeclaration(value, tensor, tied))
        self.stored.add(value)
        self.scope[weight.name] = Tensor(value)

    def _cache(self, cache: ast.Cache) -> None:
        if cache.kind != "paged":
            raise _error("TS0205", f"a cache is `paged`, not `{cache.kind}`", cache.span)
        if self.module.is_entry:
            raise _error("TS0205", "a cache belongs to the module that attends, not to an entry", cache.span)
        shape, placement = self._stored(cache.type, "a cache")
        if len(shape.factors) != 1 and (len(shape.factors) != 3 or shape.factors[0].size != 2):
            text = f"a paged cache is [2, K, E], keys and values of each head, or a latent row [W], got {shape.text()}"
            raise _error("TS0204", text, cache.type.span)
        window = self._count(cache.window, "a window") if cache.window is not None else 0
        value = self._value(Value(cache.name, "cache", shape, cache.span, placement))
        declaration = CacheDeclaration(value, cache.kind, 0 if window is UNKNOWN else window)
        self.instance.caches.append(declaration)
        self.scope[cache.name] = Tensor(value, declaration)

    # --- statements ---------------------------------------------------------------------------------------------

    def _statements(self, statements: tuple[ast.Statement, ...]) -> None:
        for statement in statements:
            if self.returned:
                raise _error("TS0213", "nothing can follow `return`", statement.span)
            self._statement(statement)

    def _statement(self, statement: ast.Statement) -> None:
        match statement:
            case ast.Weight():
                self._weight(statement)
            case ast.Cache():
                self._cache(statement)
            case ast.Let():
                self._let(statement)
            case ast.Assign():
                if statement.name not in self.scope:
                    raise _error("TS0201", f"`{statement.name}` is not declared; write `let`", statement.span)
                self.scope[statement.name] = self._expr(statement.value, statement.name)
            case ast.Return():
                if len(statement.values) != 1:
                    raise _error("TS0213", "a module returns one value", statement.span)
                self.instance.result = self._tensor(statement.values[0]).value
                self.instance.result_span = statement.values[0].span
                self.returned = True
            case ast.For():
                self._for(statement)
            case ast.If():
                self._if(statement)
            case _:
                assert_never(statement)

    def _let(self, let: ast.Let) -> None:
        called = let.value.function.text if isinstance(let.value, ast.Call) and isinstance(let.value.function, ast.Name) else ""
        if isinstance(let.value, ast.Call) and called == "split":
            self._split(let, let.value)
            return
        if isinstance(let.value, ast.Call) and called in COMPOSITES and COMPOSITES[called].results > 1:
            values = self._composite(let.value, called, let.names)
            if len(let.names) != len(values) or let.type is not None:
                raise _error("TS0205", f"`{called}` gives {len(values)} values: a name for each, and no type", let.span)
            self.scope.update(zip(let.names, values, strict=True))
            return
        if len(let.names) != 1:
            raise _error("TS0205", "one name for one value: only `split` and `top_k` give several", let.span)
        bound = self._expr(let.value, let.names[0])
        if let.type is not None:
            if not isinstance(bound, Tensor):
                raise _error("TS0206", "only a tensor has a type to pin", let.type.span)
            shape, placement = self.declarations.type_of(let.type)
            found = self.instance.values[bound.value].shape
            if not found.agrees(shape):
                message = f"`{let.names[0]}` is {found.text()}, and is pinned as {shape.text()}"
                raise CompileError(Diagnostic("TS0212", message, let.type.span, notes=(Note("the value comes from here", let.value.span),)))
            bound = self._pin(bound, placement, let)
        self.scope[let.names[0]] = bound

    def _split(self, let: ast.Let, call: ast.Call) -> None:
        """`let a, b = split(x, F, A, B)`: the dimension F of x as its parts A and B, one after the other."""
        arguments = [a.value for a in call.arguments]
        names = [a for a in arguments[1:] if isinstance(a, ast.Name | ast.Constant)]
        if len(arguments) != 2 + len(let.names) or len(names) + 1 != len(arguments) or any(a.name for a in call.arguments):
            text = "`split` takes a value, one of its dimensions and the parts that it is cut into, a name for each: "
            raise _error("TS0205", text + "`let a, b = split(x, F, A, B)`", call.span)
        if let.type is not None:
            raise _error("TS0212", "`split` makes several values, and one type is given", let.type.span)
        x = self._tensor(arguments[0])
        whole, *parts = (self._factor(a) for a in names)
        factors = self.instance.values[x.value].shape.factors
        dim = next((i for i, f in enumerate(factors) if f.agrees(whole)), None)
        if dim is None or whole.is_dynamic:
            raise _error("TS0204", f"{self.instance.values[x.value].shape.text()} has no dimension `{whole.name}` to split", names[0].span)
        known = [p.size for p in parts if p.size is not None]
        if whole.size is not None and len(known) == len(parts) and sum(known) != whole.size:
            sizes = " + ".join(f"{p.name} {p.size}" for p in parts)
            raise _error("TS0204", f"`{whole.name}` is {whole.size}, and its parts {sizes} are {sum(known)}", call.span)
        start: Static = 0
        for name, part in zip(let.names, parts, strict=True):
            statics = {"dim": dim, "start": start, "length": UNKNOWN if part.size is None else part.size, "part": part}
            self.scope[name] = self._apply("slice", [x], statics, call.span, name)
            start = UNKNOWN if start is UNKNOWN or part.size is None else start + part.size

    def _factor(self, node: ast.Name | ast.Constant) -> Factor:
        name = node.text if isinstance(node, ast.Name) else node.value
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise _error("TS0201", f"{name!r} is no dimension", node.span)
        return self.declarations.factor(ast.FactorRef(name, span=node.span))

    def _pin(self, bound: Tensor, placement: Placement, let: ast.Let) -> Tensor:
        assert let.type is not None
        shape = self.instance.values[bound.value].shape
        signature = Signature(((None,) * len(shape.factors),), (None,) * len(shape.factors))
        result = self._value(Value(let.names[0], "result", shape, let.type.span, placement))
        self.instance.operations.append(Operation("pin", (bound.value,), result, signature, let.type.span))
        return Tensor(result)

    def _for(self, loop: ast.For) -> None:
        first, last = (self._count(bound, "a loop's bound") for bound in (loop.first, loop.last))
        counts = [UNKNOWN] if UNKNOWN in (first, last) else range(first, last)
        before = {name: self._carried(name, loop.span) for name in loop.carried}
        outer = dict(self.scope)
        for i in counts:
            self.scope[loop.variable] = i
            self._statements(loop.body)
            for name, value in before.items():
                found = self.instance.values[self._carried(name, loop.span).value].shape
                if not found.agrees(self.instance.values[value.value].shape):
                    was = self.instance.values[value.value].shape.text()
                    raise _error("TS0214", f"the loop carries `{name}` as {was}, and makes it {found.text()}", loop.span)
            changed = next((n for n, v in outer.items() if n not in before and n != loop.variable and self.scope[n] is not v), None)
            if changed is not None:
                raise _error("TS0214", f"the loop changes `{changed}`, and does not carry it", loop.span)
        self.scope = {name: self.scope[name] if name in before else bound for name, bound in outer.items()}

    def _carried(self, name: str, span: Span) -> Tensor:
        bound = self.scope.get(name)
        if not isinstance(bound, Tensor):
            raise _error("TS0201", f"the loop carries `{name}`, which is no tensor in scope{near(name, self.scope)}", span)
        return bound

    def _if(self, statement: ast.If) -> None:
        condition = self._static(statement.condition)
        if condition is UNKNOWN:  # no config: both branches must check; what follows sees the first
            before, appended = dict(self.scope), set(self.appended)
            if statement.otherwise:
                self._statements(statement.otherwise)
                self.scope, self.returned, self.appended = before, False, appended
            self._statements(statement.then)
        else:
            self._statements(statement.then if condition else statement.otherwise)

    # --- expressions --------------------------------------------------------------------------------------------

    def _static(self, expr: ast.Expr) -> Static:
        is_config_key = isinstance(expr, ast.Name) and expr.text not in self.scope  # `when tie_word_embeddings`
        value = self._evaluate(expr) if is_config_key else self._expr(expr, "")
        if isinstance(value, Tensor):
            raise _error("TS0206", "a config value is needed here, and this is a tensor", expr.span)
        return value

    def _count(self, expr: ast.Expr, what: str) -> Static:
        """A whole number or UNKNOWN; none is 0."""
        value = self._static(expr)
        if value is None:
            return 0
        if value is not UNKNOWN and (not isinstance(value, int) or isinstance(value, bool)):
            raise _error("TS0210", f"{what} is a whole number, and this is {value!r}", expr.span)
        return value

    def _tensor(self, expr: ast.Expr, name: str = "") -> Tensor:
        value = self._expr(expr, name)
        if not isinstance(value, Tensor):
            raise _error("TS0206", f"a tensor is needed here, and this is {_static_text(value)}", expr.span)
        return value

    def _expr(self, expr: ast.Expr, name: str) -> Bound:
        """The value of an expression; `name` is what to call it in plans and graphs."""
        match expr:
            case ast.Name() if isinstance(self.scope.get(expr.text), Tensor):
                return self.scope[expr.text]
            case ast.Name() if expr.text not in self.scope:
                raise _error("TS0201", f"`{expr.text}` is not in scope{near(expr.text, self.scope)}", expr.span)
            case ast.Call():
                return self._call(expr, name)
            case ast.Index() if isinstance(base := self._maybe_tensor(expr.value), Tensor):
                if len(expr.indices) != 1:
                    raise _error("TS0205", "rows are taken by one i32 vector", expr.span)
                return self._apply("take_rows", [base, self._tensor(expr.indices[0])], {}, expr.span, name)
            case ast.Binary() if expr.operator in ("+", "*", "/"):
                left, right = self._expr(expr.left, ""), self._expr(expr.right, "")
                if isinstance(left, Tensor) or isinstance(right, Tensor):
                    return self._arithmetic(expr, left, right, name)
        return self._evaluate(expr)

    def _evaluate(self, expr: ast.Expr) -> Static:
        tensor = next((n for n in _names(expr) if isinstance(self.scope.get(n.text), Tensor)), None)
        if tensor is not None:
            raise _error("TS0206", f"`{tensor.text}` is a tensor, and this is computed before there are any", tensor.span)
        return evaluate(expr, {k: v for k, v in self.scope.items() if not isinstance(v, Tensor)}, self.declarations.config)

    def _maybe_tensor(self, expr: ast.Expr) -> Bound:
        if isinstance(expr, ast.Name):
            return self.scope.get(expr.text)
        return self._expr(expr, "") if isinstance(expr, ast.Call | ast.Binary | ast.Index) and self._has_tensor(expr) else None

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
                raise _error("TS0205", "tensors are added and multiplied, not divided", expr.span)
            return self._apply("add" if expr.operator == "+" else "mul", [left, right], {}, expr.span, name)
        tensor, number = (left, right) if isinstance(left, Tensor) else (right, left)
        divides_by_tensor = expr.operator == "/" and isinstance(right, Tensor)
        if expr.operator == "+" or divides_by_tensor or (number is not UNKNOWN and not isinstance(number, int | float)):
            raise _error("TS0205", "a tensor can be multiplied or divided by a number, nothing else", expr.span)
        if expr.operator == "/" and number == 0:
            raise _error("TS0210", "this divides by 0", expr.span)
        if expr.operator == "/" and number == 0:
            raise _error("TS0205", "a tensor cannot be divided by zero", expr.span)
        try:
            factor: Static = number if number is UNKNOWN else float(number) ** (1 if expr.operator == "*" else -1)  # type: ignore[arg-type]
        except OverflowError:
            raise _error("TS0210", "this number is too large", expr.span) from None
        assert isinstance(tensor, Tensor)
        return self._apply("scale", [tensor], {"factor": factor}, expr.span, name)

    def _call(self, call: ast.Call, name: str) -> Bound:
        function = call.function
        if isinstance(function, ast.Attribute) and function.name == "append":
            cache = self._tensor(function.value)
            if cache.cache is None:
                raise _error("TS0206", "`append` is for a cache", function.span)
            if cache.cache.value in self.appended:  # the second would overwrite the step's rows of the first
                raise _error("TS0205", f"a step appends to `{self._name(cache)}` once", call.span)
            self.appended.add(cache.cache.value)
            arguments = [cache, *(self._tensor(a.value) for a in call.arguments)]
            is_latent = len(self.instance.values[cache.value].shape.factors) == 1
            op = "latent_append" if is_latent else "cache_append"
            return Tensor(self._apply(op, arguments, {}, call.span, f"{self._name(cache)}_next").value, cache.cache)
        if not isinstance(function, ast.Name):
            raise _error("TS0202", "only a function or a module can be called", function.span)
        if function.text in self.model.modules:
            return self._module_call(call, self.model.modules[function.text], name)
        if function.text in COMPOSITES:
            values = self._composite(call, function.text, (name,))
            if len(values) > 1:
                raise _error("TS0205", f"`{function.text}` gives {len(values)} values: `let a, b = {function.text}(...)`", call.span)
            return values[0]
        if function.text in BUILTINS:
            return self._builtin_call(call, function.text, name)
        if function.text in FUNCTIONS:
            return self._evaluate(call)
        known = [*BUILTINS, *COMPOSITES, *self.model.modules]
        raise _error("TS0202", f"there is no op or module `{function.text}`{near(function.text, known)}", function.span)

    def _composite(self, call: ast.Call, op: str, names: Sequence[str]) -> tuple[Tensor, ...]:
        """A function that is written with others; its last operation has the name of what it gives."""
        composite = COMPOSITES[op]
        bound = self._arguments(call, op, composite.parameters, {})
        x = self._need_tensor(bound["x"], "x", op, _argument_span(call, composite.parameters, "x"))
        statics: dict[str, Static] = {}
        for parameter in composite.parameters[1:]:
            value = bound[parameter]
            if isinstance(value, Tensor):
                where = _argument_span(call, composite.parameters, parameter)
                raise _error("TS0206", f"`{parameter}` of `{op}` is a config value, and this is a tensor", where)
            statics[parameter] = value
        if op == "top_k":
            statics["width"] = self._block_width(x)

        def build(inner: str, *operands: Tensor, **given: Static) -> Tensor:
            return self._apply(inner, list(operands), given, call.span, names[0] if names[0] else op)

        made = composite.expand(build, x, **statics)
        return made if isinstance(made, tuple) else (made,)

    def _block_width(self, x: Tensor) -> Static:
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
            raise _error("TS0205", "parts of a value are taken by `let a, b = split(x, F, A, B)`", call.span)
        names = builtin.parameters
        defaults: dict[str, Static] = {k: v for k, v in builtin.statics.items() if v is not ...}
        bound = self._arguments(call, op, names, defaults | dict.fromkeys(builtin.tensors[builtin.fewest :]))
        given = [p for i, p in enumerate(builtin.tensors) if i < builtin.fewest or bound[p] is not None]
        tensors = [self._need_tensor(bound[p], p, op, _argument_span(call, names, p)) for p in given]
        statics = {p: bound[p] for p in builtin.statics}
        for parameter, value in statics.items():
            if isinstance(value, Tensor):
                where = _argument_span(call, names, parameter)
                raise _error("TS0206", f"`{parameter}` of `{op}` is a config value, and this is a tensor", where)
        for parameter, tensor in zip(given, tensors, strict=True):
            if parameter == "cache" and (tensor.cache is None or self.instance.values[tensor.value].kind == "cache"):
                raise _error("TS0206", f"`{op}` reads a cache: {op}(q, kv.append(k, v), ...)", call.span)
        return self._apply(op, tensors, statics, call.span, name)

    def _apply(self, op: str, operands: list[Tensor], statics: Mapping[str, Static], span: Span, name: str) -> Tensor:
        builtin = BUILTINS[op]
        if not builtin.fewest <= len(operands) <= len(builtin.tensors):
            raise _error("TS0205", f"`{op}` takes {len(builtin.tensors)} tensors, got {len(operands)}", span)
        shapes = [self.instance.values[t.value].shape for t in operands]
        try:
            typing = builtin.infer(shapes, statics)
        except Mismatch as error:
            if error.operand is None:
                raise _error("TS0210", str(error), span) from None
            culprits = [self.instance.values[t.value] for t in operands]
            order = [error.operand, *(i for i in range(len(operands)) if i != error.operand)]
            notes = tuple(Note(_origin(culprits[i]), culprits[i].span) for i in order)
            raise CompileError(Diagnostic("TS0204", str(error), span, notes=notes)) from None
        attributes = dict(typing.attributes)
        for attribute, number in attributes.items():
            if isinstance(number, float) and not math.isfinite(number):
                raise _error("TS0210", f"`{attribute}` of `{op}` is {number}, which is no finite number", span)
        for parameter, operand in zip(builtin.tensors, operands, strict=False):
            if parameter == "cache" and operand.cache is not None and not op.endswith("_append"):
                attributes["window"] = operand.cache.window
        result = self._value(Value(name or op, "result", typing.shape, span))
        if operands and all(t.value in self.stored for t in operands):
            if op != "slice":
                text = f"`{op}` of weights alone has the same result in every step, and would be computed in each"
                raise _error("TS0217", text, span)
            self.stored.add(result)
        self.instance.operations.append(Operation(op, tuple(t.value for t in operands), result, typing.signature, span, attributes))
        return Tensor(result)

    def _module_call(self, call: ast.Call, module: ast.Module, name: str) -> Tensor:
        if module.is_entry:
            raise _error("TS0202", "an entry cannot be called", call.span)
        names = tuple(p.name for p in module.parameters)
        bound = self._arguments(call, module.name, names, {})
        statics = {p.name: bound[p.name] for p in module.parameters if p.type is None}
        for parameter, value in statics.items():
            if isinstance(value, Tensor):
                where = _argument_span(call, names, parameter)
                raise _error("TS0206", f"`{parameter}` of `{module.name}` is a config value, and this is a tensor", where)
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
        result = self._value(Value(name or module.name.lower(), "result", shape, call.span))
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
                raise _error("TS0205", f"`{callee}` has {extra}", argument.span)
            if name in bound:
                raise _error("TS0205", f"`{name}` of `{callee}` is given twice", argument.span)
            bound[name] = self._expr(argument.value, "")
        lacking = [n for n in names if n not in bound and n not in defaults]
        if lacking:
            raise _error("TS0205", f"`{callee}` needs {', '.join(f'`{n}`' for n in lacking)}", call.span)
        return {**defaults, **bound}

    # --- small things -------------------------------------------------------------------------------------------

    def _need_tensor(self, bound: Bound, parameter: str, callee: str, span: Span) -> Tensor:
        if not isinstance(bound, Tensor):
            raise _error("TS0206", f"`{parameter}` of `{callee}` is a tensor, and this is {_static_text(bound)}", span)
        return bound

    def _value(self, value: Value) -> int:
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


def _error(code: str, message: str, span: Span) -> CompileError:
    return CompileError(Diagnostic(code, message, span))
