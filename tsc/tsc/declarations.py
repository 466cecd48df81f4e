"""The config and mesh blocks with their values, and declared types in terms of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tsc import ast
from tsc.diagnostics import CompileError, Diagnostic, Note, near
from tsc.mesh import Axis, Mesh
from tsc.spans import Span
from tsc.static import UNKNOWN, Static, evaluate
from tsc.types import DYNAMIC, PAGES, SPLITTABLE, AxisPlacement, Factor, Placement, Shape

REDUCTIONS = ("sum", "max")
DTYPES = {"bf16": "bf16", "f16": "f16", "f32": "f32", "i32": "i32", "int": "i32"}


@dataclass(frozen=True)
class Declarations:
    """`names` are the config block's values; `config` the checkpoint's own keys (None: not given)."""

    names: Mapping[str, Static]
    bindings: Mapping[str, ast.Binding]
    config: Mapping[str, Any] | None
    mesh: Mesh
    unused: tuple[str, ...] = ()  # patterns of tensor names

    @staticmethod
    def of(file: ast.ModelFile, config: Mapping[str, Any] | None, sizes: Mapping[str, int] | None) -> Declarations:
        names: dict[str, Static] = {}
        for binding in file.config:
            if binding.name in (*DYNAMIC, PAGES):
                text = f"`{binding.name}` is taken: T are a step's tokens, S its sequences, `pages` those of a cache; use another name"
                raise _error("TS0210", text, binding)
            names[binding.name] = evaluate(binding.value, names, config)
        for requirement in file.requirements:
            _check_requirement(requirement, names, config)
        return Declarations(names, {b.name: b for b in file.config}, config, _mesh(file, names, config, sizes), _unused(file, names))

    def type_of(self, node: ast.TensorType, *, stored: bool = False) -> tuple[Shape, Placement]:
        """A declared type's shape and placement, checked against the mesh; `stored`: it may group factors. Raises CompileError."""
        for dimension in node.dimensions:
            if len(dimension.factors) > 1 and not stored:
                names = ", ".join(str(f.name) for f in dimension.factors)
                raise _error("TS0204", f"only a weight groups factors; a value has a dimension for each: `{names}`", dimension)
        dtype = ""
        if node.dtype is not None:
            if node.dtype not in DTYPES:
                raise _error("TS0204", f"there is no element type `{node.dtype}`{near(node.dtype, DTYPES)}", node)
            dtype = DTYPES[node.dtype]
        dimensions = [[self.factor(f) for f in d.factors] for d in node.dimensions]
        places: dict[str, AxisPlacement] = {}
        index = 0
        for dimension in node.dimensions:
            for ref in dimension.factors:
                if ref.axis is not None:
                    self._split(ref, index, dimensions, places)
                index += 1
        for partial in node.partials:
            if partial.reduction not in REDUCTIONS:
                raise _error("TS0208", f"a value is pending a `sum` or a `max`, not `{partial.reduction}`", partial)
            for leaf in self._leaves(partial.axis, partial):
                if leaf in places:
                    raise _error("TS0209", f"axis `{leaf}` is used twice in this type", partial)
                places[leaf] = partial.reduction
        return Shape.of(dtype, dimensions), tuple(places.get(a.name) for a in self.mesh.active)

    def in_pages(self, cache: ast.Cache, row: Shape, placement: Placement) -> tuple[Shape, Placement]:
        """A cache of such rows: its pages come first, and split over the axis of `paged@axis`. Raises CompileError."""
        split = self._leaves(cache.axis, cache) if cache.axis is not None else ()
        for axis, place in zip(self.mesh.active, placement, strict=True):
            if axis.name in split and place is not None:
                raise _error("TS0209", f"axis `{axis.name}` splits the pages and a factor of the rows", cache)
        moved = (p + 1 if isinstance(p, int) else p for p in placement)
        shape = Shape(row.dtype, (Factor(PAGES, None), *row.factors), (1, *row.groups))
        return shape, tuple(0 if a.name in split else p for a, p in zip(self.mesh.active, moved, strict=True))

    def factor(self, ref: ast.FactorRef) -> Factor:
        """The extent of that name. Raises CompileError."""
        if isinstance(ref.name, int):
            return Factor(str(ref.name), ref.name)
        if ref.name in DYNAMIC:
            return Factor(ref.name, None)
        if ref.name not in self.names:
            known = [*self.names, *DYNAMIC]
            raise _error("TS0201", f"no dimension `{ref.name}` is declared in the config block{near(ref.name, known)}", ref)
        size = self.names[ref.name]
        if size is UNKNOWN:
            return Factor(ref.name, None)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            note = Note(f"`{ref.name}` is {size!r}", self.bindings[ref.name].span)
            raise CompileError(Diagnostic("TS0210", f"dimension `{ref.name}` must be a whole number above 0", ref.span, notes=(note,)))
        return Factor(ref.name, size)

    def _split(self, ref: ast.FactorRef, index: int, dimensions: list[list[Factor]], places: dict[str, AxisPlacement]) -> None:
        assert ref.axis is not None
        factor = [f for d in dimensions for f in d][index]
        leaves = self._leaves(ref.axis, ref)
        if factor.is_dynamic and factor.name not in SPLITTABLE:
            raise _error("TS0215", f"the sequences of a step are few, and no axis can split `{factor.name}`", ref)
        for leaf in leaves:
            if leaf in places:
                raise _error("TS0209", f"axis `{leaf}` is used twice in this type", ref)
            places[leaf] = index
        sizes = {a.name: a.size for a in self.mesh.axes}
        ranks = math.prod(sizes[leaf] or 1 for leaf in leaves)
        if factor.size is not None and factor.size % ranks:
            raise self._indivisible(ref, factor, ranks)

    def _indivisible(self, ref: ast.FactorRef, factor: Factor, ranks: int) -> CompileError:
        assert ref.axis is not None
        whole = next((n for n, parts in self.mesh.products.items() if ref.axis in parts), ref.axis)
        size = f"`{whole}` is {self.mesh.size_of(self.mesh.leaves(whole) or ())} from --mesh"
        if whole != ref.axis:
            size = f"`{ref.axis}` is a part of `{whole}`, and {size}"
        notes = [Note(size)]
        if (binding := self.bindings.get(factor.name)) is not None:
            notes = [Note(f"`{factor.name}` is {binding.value.span.text()}, {factor.size} in this config; {size}", binding.span)]
        text = f"axis `{ref.axis}` has {ranks} ranks and cannot split `{factor.name}`, which is {factor.size}"
        return CompileError(Diagnostic("TS0207", text, ref.span, notes=tuple(notes)))

    def _leaves(self, name: str, node: ast.Node) -> tuple[str, ...]:
        leaves = self.mesh.leaves(name)
        if leaves is None:
            raise _error("TS0208", f"the mesh has no axis `{name}`{near(name, self.mesh.names())}", node)
        return leaves


def _check_requirement(requirement: ast.Requirement, names: Mapping[str, Static], config: Mapping[str, Any] | None) -> None:
    """A setting that the model file does not implement must not compile into a model that computes something else."""
    value = evaluate(requirement.condition, names, config)
    if value is UNKNOWN or value:
        return
    keys = [n for n in dict.fromkeys(re.findall(r"[A-Za-z_]\w*", requirement.span.text())) if n in (config or {})]
    facts = ", ".join(f"`{k}` is {(config or {})[k]!r}" for k in keys)
    note = (Note(f"{facts} in the config"),) if facts else ()
    message = "this model file is not for such a checkpoint: what it requires is false"
    fix = "extend the model file to what the setting means, then drop the requirement"
    raise CompileError(Diagnostic("TS0216", message, requirement.span, notes=note, fixes=(fix,)))


def _unused(file: ast.ModelFile, names: Mapping[str, Static]) -> tuple[str, ...]:
    return tuple(formatted(u.pattern, names, u.span) for u in file.unused)


def formatted(template: str, scope: Mapping[str, Any], span: Span, keep: str = "") -> str:
    """`{i}` replaced by the config value of that name, where that is known; `keep`: a name that stays. Raises CompileError."""

    def value(match: re.Match[str]) -> str:
        bound = scope.get(match[1])
        if bound is UNKNOWN or match[1] == keep:
            return match[0]
        if match[1] not in scope or not isinstance(bound, int | str):
            raise CompileError(Diagnostic("TS0201", f'`{match[1]}` in "{template}" is no config value in scope', span))
        return str(bound)

    return re.sub(r"\{(\w+)\}", value, template)


def _mesh(file: ast.ModelFile, names: Mapping[str, Static], config: Mapping[str, Any] | None, sizes: Mapping[str, int] | None) -> Mesh:
    declared = [a.name for a in file.axes]
    for name in sizes or {}:
        if name not in declared:
            has = f"the model's mesh has {', '.join(declared)}" if declared else "the model declares no mesh"
            raise CompileError(Diagnostic("TS0211", f"--mesh: there is no axis `{name}`; {has}{near(name, declared)}"))
    axes: list[Axis] = []
    products: dict[str, tuple[str, ...]] = {}
    joined: set[str] = set()
    for axis in file.axes:
        if axis.product and set(axis.product) & set(declared):
            products[axis.name] = _joined(axis, [*products, *(a.name for a in axes)], Mesh(tuple(axes), products), sizes or {})
            joined.add(axis.name)
            continue
        total: Static = UNKNOWN if sizes is None else sizes.get(axis.name, 1)
        if not axis.product:
            axes.append(Axis(axis.name, None if total is UNKNOWN else total))
            continue
        scope = {**names, axis.name: total}
        for binding in axis.bindings:
            scope[binding.name] = evaluate(binding.value, scope, config)
        axes.extend(_factored(axis, total, scope))
        products[axis.name] = axis.product
    return Mesh(tuple(axes), products, frozenset(joined))


def _joined(axis: ast.Axis, above: list[str], mesh: Mesh, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The leaf axes of a product of axes that are declared above it."""
    lacking = [n for n in axis.product if n not in above]
    if lacking or axis.bindings:
        what = f"`{lacking[0]}` is not declared above it" if lacking else "`where` sizes the parts of an axis that is given ranks"
        raise _error("TS0211", f"axis `{axis.name}` is a product of axes that have their own ranks: {what}", axis)
    if axis.name in sizes:
        parts = ",".join(f"{n}=..." for n in axis.product)
        raise _error("TS0211", f"--mesh: axis `{axis.name}` is made of {', '.join(axis.product)}: give those, as in {parts}", axis)
    leaves = tuple(leaf for part in axis.product for leaf in mesh.leaves(part) or ())
    order = [a.name for a in mesh.axes]
    if list(leaves) != sorted(set(leaves), key=order.index):
        raise _error("TS0211", f"axis `{axis.name}` names its parts once each, in the order of declaration: major to minor", axis)
    return leaves


def _factored(axis: ast.Axis, total: Static, scope: Mapping[str, Static]) -> list[Axis]:
    """The leaf axes of a product; the one that is not bound takes what the others leave."""
    bound = {b.name for b in axis.bindings}
    free = [n for n in axis.product if n not in bound]
    if len(free) > 1:
        raise _error("TS0211", f"at most one of {', '.join(axis.product)} can be left to follow from `{axis.name}`", axis)
    values = {n: scope[n] for n in axis.product if n in bound}
    for binding in axis.bindings:
        size = scope[binding.name]
        if size is not UNKNOWN and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise _error("TS0211", f"axis `{binding.name}` has a whole number of ranks above 0, and this is {size!r}", binding.value)
    if total is UNKNOWN or UNKNOWN in values.values():
        return [Axis(n, total if total == 1 else None) for n in axis.product]
    rest, remainder = divmod(total, math.prod(values.values()))
    if remainder or (not free and rest != 1):
        text = " * ".join(f"{n} = {v}" for n, v in values.items())
        raise _error("TS0211", f"axis `{axis.name}` has {total} ranks, which {text} does not make up", axis)
    return [Axis(n, values.get(n, rest)) for n in axis.product]


def _error(code: str, message: str, node: ast.Node) -> CompileError:
    return CompileError(Diagnostic(code, message, node.span))
