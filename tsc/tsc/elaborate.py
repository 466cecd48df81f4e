"""From the syntax tree, a config and mesh sizes to the typed program: names, shapes, static control flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

from tsc import ast
from tsc.checkpoint.arranged import arrangement_of
from tsc.checkpoint.config import MOST_LAYERS
from tsc.checkpoint.parts import part_name
from tsc.declarations import Declarations, formatted
from tsc.diagnostics import CompileError, Diagnostic, Note, near
from tsc.expressions import Expressions, Tensor, error_at
from tsc.mesh import Mesh
from tsc.program import CacheDeclaration, Instance, Operation, TypedModel, Value, ValueKind, WeightDeclaration
from tsc.signatures import Signature
from tsc.spans import Span
from tsc.static import UNKNOWN, Static
from tsc.stdlib import COMPOSITES
from tsc.types import Factor, Placement, Shape

STEP_INPUTS = {"ids": ("i32", "T"), "positions": ("i32", "T"), "last": ("i32", "S")}
"""What a runtime feeds to an entry, by parameter name: element type and dimension."""
MOST_ROUNDS = MOST_LAYERS
"""Of a module's loops together: each is operations of its own, though what the rounds call is elaborated once."""
MOST_STACKED = 65_536
"""Tensors of the checkpoint that one weight is."""


def elaborate(
    file: ast.ModelFile,
    config: Mapping[str, Any] | None = None,
    mesh: Mapping[str, int] | None = None,
    *,
    entry: str | None = None,
    every: bool = False,
) -> TypedModel:
    """Bind config and mesh (`None`: unknown sizes), check every instance that the entry reaches. `entry`: by its name, else the first;
    `every`: and the modules that it does not reach, their static parameters unknown. Raises CompileError."""
    declarations = Declarations.of(file, config, mesh)
    start = find_entry(file, entry)
    model = _Model(file, declarations)
    key = model.instantiate(start, {}, start.span)
    if every:
        model.instantiate_rest()
    _check_pages(declarations.mesh, model.instances.values())
    return TypedModel(
        file.architectures,
        declarations.mesh,
        dict(declarations.names),
        dict(model.instances),
        model.instances[key].name,
        declarations.unused,
    )


def find_entry(file: ast.ModelFile, name: str | None = None) -> ast.Module:
    """The entry of that name, or the first. Raises CompileError."""
    entries = {m.name: m for m in file.modules if m.is_entry}
    if not entries:
        raise CompileError(Diagnostic("TS0213", "the file has no `entry`", file.span, fixes=("add `entry decode(ids: i32[T], ...)`",)))
    if name is None:
        return next(iter(entries.values()))
    if name not in entries:
        known = ", ".join(f"`{known}`" for known in entries)
        raise CompileError(Diagnostic("TS0213", f"--entry: there is no entry `{name}`; the file has {known}", file.span))
    return entries[name]


def kept_values(modules: Iterable[ast.Module]) -> Mapping[str, tuple[ast.Module, ast.Keep]]:
    """What entries keep, by name: which one, and where. An entry that keeps what it takes is not the first to."""
    found: dict[str, tuple[ast.Module, ast.Keep]] = {}
    for module in modules:
        taken = {parameter.name for parameter in module.parameters}
        for statement in module.body if module.is_entry else ():
            if isinstance(statement, ast.Keep) and statement.name not in taken:
                found.setdefault(statement.name, (module, statement))
    return found


def drafter_of(file: ast.ModelFile, entry: str) -> ast.Module | None:
    """The first entry that takes what `entry` keeps: it drafts the token after the next."""
    kept = {name for name, (keeper, _) in kept_values(file.modules).items() if keeper.name == entry}
    return next((m for m in file.modules if m.is_entry and m.name != entry and kept & {p.name for p in m.parameters}), None)


def _check_pages(mesh: Mesh, instances: Iterable[Instance]) -> None:
    """A sequence has one table of pages for all caches, so the same ranks keep its rows in each."""
    caches = [i.values[c.value] for i in instances for c in i.caches]
    for cache in caches[1:]:
        first = caches[0]
        if [p == 0 for p in cache.placement or ()] != [p == 0 for p in first.placement or ()]:
            notes = (Note(f"`{first.name}` is {first.shape.text(mesh, first.placement or ())}", first.span),)
            message = f"`{cache.name}` is {cache.shape.text(mesh, cache.placement or ())}, and the pages of all caches are split alike"
            fix = "give both the same `paged@axis`: a sequence is kept by the same ranks in every layer"
            raise CompileError(Diagnostic("TS0218", message, cache.span, notes=notes, fixes=(fix,)))


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

    def instantiate_rest(self) -> None:
        """Every module that nothing has called; a later one may call an earlier one."""
        for module in self.modules.values():
            if module.name not in {i.module for i in self.instances.values()}:
                self.instantiate(module, {p.name: UNKNOWN for p in module.parameters if p.type is None}, module.span)


class _Body(Expressions):
    """Elaborates one module into one instance."""

    def __init__(self, model: _Model, module: ast.Module, instance: Instance, statics: Mapping[str, Static]) -> None:
        super().__init__(model, instance, statics)
        self.module = module
        self.returned = False
        self.rounds = 0

    def run(self) -> None:
        result, placement = self.declarations.type_of(self.module.result)
        gives_rows = not result.dtype and len(result.factors) == 2 and result.factors[0].name == "S"
        if self.module.is_entry and not gives_rows and result.text() != "i32[S]":
            what = "each sequence's logits, [S, V], its embedding, [S, D], or its next token, i32[S]"
            raise error_at("TS0213", f"an entry returns {what}, and this declares {result.text()}", self.module.result.span)
        for parameter in self.module.parameters:
            if parameter.type is not None:
                self._parameter(parameter)
        self._statements(self.module.body)
        if not self.returned:
            raise error_at("TS0213", f"`{self.module.name}` returns nothing, and declares {result.text()}", self.module.span)
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
        given = kept_values(self.model.modules.values()).get(parameter.name)
        if self.module.is_entry and given is not None and parameter.name not in STEP_INPUTS:
            self._taken(parameter, Value(parameter.name, "kept", shape, parameter.span, placement), *given)
            return
        if self.module.is_entry and (parameter.name not in STEP_INPUTS or shape.text() != "{}[{}]".format(*STEP_INPUTS[parameter.name])):
            known = ", ".join(f"{n}: {t}[{d}]" for n, (t, d) in STEP_INPUTS.items())
            raise error_at(
                "TS0205", f"an entry takes what a step brings, of {known}; not `{parameter.name}: {shape.text()}`", parameter.span
            )
        if self.module.is_entry and any(place is not None for place in placement):
            raise error_at("TS0215", f"a step brings the same `{parameter.name}` to every rank", parameter.span)
        kind: ValueKind = "step" if self.module.is_entry else "parameter"
        self._add_parameter(Value(parameter.name, kind, shape, parameter.span, placement))

    def _add_parameter(self, parameter: Value) -> None:
        value = self.add_value(parameter)
        self.instance.parameters.append(value)
        self.scope[parameter.name] = Tensor(value)

    def _taken(self, parameter: ast.Parameter, value: Value, keeper: ast.Module, keep: ast.Keep) -> None:
        """A parameter that another entry keeps."""
        shape, placement = self.declarations.type_of(keep.type)
        if not shape.agrees(value.shape) or placement != value.placement:
            mesh = self.declarations.mesh
            message = f"`{keeper.name}` keeps `{keep.name}` as {shape.text(mesh, placement)}, and this takes it as "
            notes = (Note("it is kept here", keep.span),)
            raise CompileError(Diagnostic("TS0212", message + value.shape.text(mesh, value.placement or ()), parameter.span, notes=notes))
        self._add_parameter(value)

    def _stored(self, node: ast.TensorType, what: str) -> tuple[Shape, Placement]:
        shape, placement = self.declarations.type_of(node, stored=what == "a weight")
        largest = next((p for p in node.partials if what != "a weight" or p.reduction != "sum"), None)
        if largest is not None:
            raise error_at("TS0215", f"{what} is stored, and what is stored is not pending a {largest.reduction}", node.span)
        dynamic = [f.name for f in shape.factors if f.is_dynamic]
        if dynamic:
            raise error_at("TS0204", f"{what} is stored, and `{dynamic[0]}` is known only when a step runs", node.span)
        return shape, placement

    def _weight(self, weight: ast.Weight) -> None:
        if weight.tied is None and weight.condition is not None and self.static(weight.condition) in (False, None, 0):
            self.scope[weight.name] = None
            return
        shape, placement = self._stored(weight.type, "a weight")
        tied = None
        if weight.tied is not None:
            when = True if weight.condition is None else self.static(weight.condition)
            tied = weight.tied if when and when is not UNKNOWN else None
            other = self.scope.get(weight.tied)
            if not isinstance(other, Tensor):
                raise error_at("TS0201", f"no weight `{weight.tied}` is declared above{near(weight.tied, self.scope)}", weight.span)
            found = self.instance.values[other.value]
            if found.kind != "weight":
                raise error_at("TS0201", f"`{weight.tied}` is no weight, and only a weight can be tied to", weight.span)
            if not found.shape.agrees(shape) or found.placement != placement:
                text = found.shape.text(self.declarations.mesh, found.placement or ())
                raise error_at("TS0204", f"tied weights have one type, and `{weight.tied}` is {text}", weight.type.span)
        value = self.add_value(Value(weight.name, "weight", shape, weight.span, placement))
        stacked = shape.dimensions()[0][0].name if shape.factors and shape.groups[0] == 1 else ""
        tensor = formatted(weight.tensor, self.scope, weight.span, keep=stacked)
        tensor = _arranged(weight, tensor, shape.factors["{" + stacked + "}" in tensor :])
        if weight.start is not None:
            tensor = self._part(weight.start, tensor, shape.dimensions()["{" + stacked + "}" in tensor])
        if "{" + stacked + "}" in tensor and (shape.factors[0].size or 0) > MOST_STACKED:
            text = f"a weight is at most {MOST_STACKED:,} of the checkpoint's tensors, and `{stacked}` is {shape.factors[0].size:,}"
            raise error_at("TS0210", text, weight.span)
        self.instance.weights.append(WeightDeclaration(value, tensor, tied))
        self.scope[weight.name] = Tensor(value)

    def _part(self, start: ast.Expr, tensor: str, rows: Sequence[Factor]) -> str:
        """The name of so many rows of a tensor; of the tensor where their number is not known."""
        first = self.count(start, "a tensor's row")
        if first is UNKNOWN or any(f.size is None for f in rows):
            return tensor
        if first < 0:
            raise error_at("TS0210", f"a tensor's rows are counted from 0, and this is {first}", start.span)
        return part_name(tensor, first, first + math.prod(f.size or 0 for f in rows))

    def _cache(self, cache: ast.Cache) -> None:
        if cache.kind not in ("paged", "state"):
            raise error_at("TS0205", f"a cache is `paged` or a `state`, not `{cache.kind}`", cache.span)
        if self.module.is_entry:
            raise error_at("TS0205", "a cache belongs to the module that reads it, not to an entry", cache.span)
        shape, placement = self._stored(cache.type, "a cache")
        if cache.kind == "state" and cache.window is not None:
            raise error_at("TS0205", "a state is of all tokens so far, and has no window", cache.span)
        if cache.kind == "paged" and len(shape.factors) != 1 and (len(shape.factors) != 3 or shape.factors[0].size != 2):
            text = f"a paged cache is [2, K, E], keys and values of each head, or a latent row [W], got {shape.text()}"
            raise error_at("TS0204", text, cache.type.span)
        window = self.count(cache.window, "a window") if cache.window is not None else 0
        shape, placement = self.declarations.in_pages(cache, shape, placement)
        value = self.add_value(Value(cache.name, "cache", shape, cache.span, placement))
        declaration = CacheDeclaration(value, cache.kind, 0 if window is UNKNOWN else window)
        self.instance.caches.append(declaration)
        self.scope[cache.name] = Tensor(value, declaration)

    # --- statements ---------------------------------------------------------------------------------------------

    def _statements(self, statements: tuple[ast.Statement, ...]) -> None:
        for statement in statements:
            if self.returned:
                raise error_at("TS0213", "nothing can follow `return`", statement.span)
            self._statement(statement)

    def _statement(self, statement: ast.Statement) -> None:
        match statement:
            case ast.Weight():
                self._weight(statement)
            case ast.Cache():
                self._cache(statement)
            case ast.Let():
                self._let(statement)
            case ast.Keep():
                self._keep(statement)
            case ast.Assign():
                if statement.name not in self.scope:
                    raise error_at("TS0201", f"`{statement.name}` is not declared; write `let`", statement.span)
                self.scope[statement.name] = self.expr(statement.value, statement.name)
            case ast.Return():
                if len(statement.values) != 1:
                    raise error_at("TS0213", "a module returns one value", statement.span)
                self.instance.result = self.tensor(statement.values[0]).value
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
            values = self.composite(let.value, called, let.names)
            if len(let.names) != len(values) or let.type is not None:
                raise error_at("TS0205", f"`{called}` gives {len(values)} values: a name for each, and no type", let.span)
            self.scope.update(zip(let.names, values, strict=True))
            return
        if len(let.names) != 1:
            raise error_at("TS0205", "one name for one value: only `split` and `top_k` give several", let.span)
        bound = self.expr(let.value, let.names[0])
        if let.type is not None:
            if not isinstance(bound, Tensor):
                raise error_at("TS0206", "only a tensor has a type to pin", let.type.span)
            shape, placement = self.declarations.type_of(let.type)
            found = self.instance.values[bound.value].shape
            if not found.agrees(shape):
                message = f"`{let.names[0]}` is {found.text()}, and is pinned as {shape.text()}"
                raise CompileError(Diagnostic("TS0212", message, let.type.span, notes=(Note("the value comes from here", let.value.span),)))
            bound = self._pin(bound, placement, let)
        self.scope[let.names[0]] = bound

    def _keep(self, keep: ast.Keep) -> None:
        if not self.module.is_entry or not any(statement is keep for statement in self.module.body):
            raise error_at("TS0205", "what is kept is for other entries: `keep` stands in an entry, in no `if` or `for`", keep.span)
        if keep.name in STEP_INPUTS:
            raise error_at("TS0205", f"`{keep.name}` is what a step brings; keep this by another name", keep.span)
        parameters = (self.instance.values[i] for i in self.instance.parameters)
        again = next((value for value in parameters if value.name == keep.name), None)  # for the next run of this entry
        _, first = kept_values(self.model.modules.values()).get(keep.name, (self.module, keep))
        mine = [statement for statement in self.module.body if isinstance(statement, ast.Keep) and statement.name == keep.name]
        if mine[0] is not keep or (again is None and first is not keep):
            notes = (Note("the first is here", (mine if mine[0] is not keep else [first])[0].span),)
            raise CompileError(Diagnostic("TS0117", f"`{keep.name}` is kept twice", keep.span, notes=notes))
        shape, placement = self.declarations.type_of(keep.type)
        if again is not None and (not again.shape.agrees(shape) or again.placement != placement):
            mesh = self.declarations.mesh
            message = (
                f"`{keep.name}` is taken as {again.shape.text(mesh, again.placement or ())}, and kept as {shape.text(mesh, placement)}"
            )
            raise CompileError(Diagnostic("TS0212", message, keep.type.span, notes=(Note("it is taken here", again.span),)))
        value = self.tensor(keep.value)
        found = self.instance.values[value.value]
        if [f.name for f in shape.factors[:1]] != ["T"] or keep.type.partials:
            raise error_at("TS0204", f"what is kept are rows of the step's tokens, [T, ...], and this is {shape.text()}", keep.type.span)
        if not found.shape.agrees(shape):
            message = f"`{keep.name}` is {found.shape.text()}, and is kept as {shape.text()}"
            raise CompileError(Diagnostic("TS0212", message, keep.type.span, notes=(Note("the value comes from here", keep.value.span),)))
        signature = Signature(((None,) * len(shape.factors),), (None,) * len(shape.factors))
        result = self.add_value(Value(keep.name, "result", found.shape, keep.span, placement))
        self.instance.operations.append(Operation("keep", (value.value,), result, signature, keep.span, {"name": keep.name}))
        self.scope[keep.name] = Tensor(result)

    def _split(self, let: ast.Let, call: ast.Call) -> None:
        """`let a, b = split(x, F, A, B)`: the dimension F of x as its parts A and B, one after the other."""
        arguments = [a.value for a in call.arguments]
        names = [a for a in arguments[1:] if isinstance(a, ast.Name | ast.Constant)]
        if len(arguments) != 2 + len(let.names) or len(names) + 1 != len(arguments) or any(a.name for a in call.arguments):
            text = "`split` takes a value, one of its dimensions and the parts that it is cut into, a name for each: "
            raise error_at("TS0205", text + "`let a, b = split(x, F, A, B)`", call.span)
        if let.type is not None:
            raise error_at("TS0212", "`split` makes several values, and one type is given", let.type.span)
        x = self.tensor(arguments[0])
        whole, *parts = (self.factor(a) for a in names)
        dim = self.dimension_of(x, whole, names[0].span)
        known = [p.size for p in parts if p.size is not None]
        if whole.size is not None and len(known) == len(parts) and sum(known) != whole.size:
            sizes = " + ".join(f"{p.name} {p.size}" for p in parts)
            raise error_at("TS0204", f"`{whole.name}` is {whole.size}, and its parts {sizes} are {sum(known)}", call.span)
        start: Static = 0
        for name, part in zip(let.names, parts, strict=True):
            statics = {"dim": dim, "start": start, "length": UNKNOWN if part.size is None else part.size, "part": part}
            self.scope[name] = self.apply("slice", [x], statics, call.span, name, written="split")
            start = UNKNOWN if start is UNKNOWN or part.size is None else start + part.size

    def _pin(self, bound: Tensor, placement: Placement, let: ast.Let) -> Tensor:
        assert let.type is not None
        shape = self.instance.values[bound.value].shape
        signature = Signature(((None,) * len(shape.factors),), (None,) * len(shape.factors))
        result = self.add_value(Value(let.names[0], "result", shape, let.type.span, placement))
        self.instance.operations.append(Operation("pin", (bound.value,), result, signature, let.type.span))
        return Tensor(result)

    def _for(self, loop: ast.For) -> None:
        first, last = (self.count(bound, "a loop's bound") for bound in (loop.first, loop.last))
        counts = [UNKNOWN] if UNKNOWN in (first, last) else range(first, last)
        self.rounds += len(counts)
        if self.rounds > MOST_ROUNDS:
            raise error_at("TS0210", f"a module's loops have at most {MOST_ROUNDS:,} rounds, and this makes {self.rounds:,}", loop.span)
        before = {name: self._carried(name, loop.span) for name in loop.carried}
        outer = dict(self.scope)
        for i in counts:
            self.scope[loop.variable] = i
            self._statements(loop.body)
            for name, value in before.items():
                found = self.instance.values[self._carried(name, loop.span).value].shape
                if not found.agrees(self.instance.values[value.value].shape):
                    was = self.instance.values[value.value].shape.text()
                    raise error_at("TS0214", f"the loop carries `{name}` as {was}, and makes it {found.text()}", loop.span)
            changed = next((n for n, v in outer.items() if n not in before and n != loop.variable and self.scope[n] is not v), None)
            if changed is not None:
                raise error_at("TS0214", f"the loop changes `{changed}`, and does not carry it", loop.span)
        self.scope = {name: self.scope[name] if name in before else bound for name, bound in outer.items()}

    def _carried(self, name: str, span: Span) -> Tensor:
        bound = self.scope.get(name)
        if not isinstance(bound, Tensor):
            raise error_at("TS0201", f"the loop carries `{name}`, which is no tensor in scope{near(name, self.scope)}", span)
        return bound

    def _if(self, statement: ast.If) -> None:
        condition = self.static(statement.condition)
        if condition is UNKNOWN:  # no config: both branches must check; what follows sees the first
            before, appended = dict(self.scope), set(self.appended)
            if statement.otherwise:
                self._statements(statement.otherwise)
                self.scope, self.returned, self.appended = before, False, appended
            self._statements(statement.then)
        else:
            self._statements(statement.then if condition else statement.otherwise)


def _arranged(weight: ast.Weight, tensor: str, factors: Sequence[Factor]) -> str:
    """The name of a weight that says how the checkpoint stores it: with the weight's factors, each once."""
    try:
        named = arrangement_of(tensor)
    except ValueError as error:
        raise error_at("TS0204", f'"{weight.tensor}" does not say how the checkpoint stores it: {error}', weight.span) from None
    if named is None:
        return tensor
    stored, wanted = sorted(named[1].names), [f.name for f in factors]
    if stored != sorted(wanted) or len(set(wanted)) != len(wanted):
        text = f"the checkpoint stores the factors of a weight, each once: {', '.join(wanted)}, not {', '.join(named[1].names)}"
        raise error_at("TS0204", text, weight.span)
    return f"{named[0]}[{named[1]}]"
