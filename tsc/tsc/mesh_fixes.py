"""Fixes for an axis that does not divide a factor (TS0207): each is tried, and offered only if the whole model then checks.

Does not: change two axes at once, or look for a fix of anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from tsc import ast
from tsc.diagnostics import CompileError, Diagnostic

Sizes = Mapping[str, int]
Attempt = Callable[[ast.ModelFile, Sizes | None], object]
"""Elaborates and places a file on a mesh. Raises CompileError."""


def with_mesh_fixes(error: CompileError, file: ast.ModelFile, sizes: Sizes | None, attempt: Attempt) -> CompileError:
    """The same error; its TS0207 findings have the fixes that check."""
    if not sizes:
        return error
    return CompileError(*(_fixed(d, file, sizes, attempt) if d.code == "TS0207" else d for d in error.diagnostics))


def _fixed(diagnostic: Diagnostic, file: ast.ModelFile, sizes: Sizes, attempt: Attempt) -> Diagnostic:
    def checks(changed: ast.ModelFile, mesh: Sizes) -> bool:
        try:
            attempt(changed, mesh)
        except CompileError:
            return False
        return True

    fixes = list(_smaller(file, sizes, checks))
    assert diagnostic.span is not None
    factor, _, axis = (part.strip() for part in diagnostic.span.text().partition("@"))
    if repeated := _repeated(file, factor, axis):
        changed, product = repeated
        if checks(changed, sizes):
            parts = f"mesh {{ {axis} = {' * '.join(product)} where {product[0]} = gcd({factor}, {axis}) }}"
            fixes.append(
                f"let `{factor}` repeat over a part of `{axis}`: {parts}, and `{factor}@{product[0]}` for each `{factor}@{axis}` (checked)"
            )
    return replace(diagnostic, fixes=(*diagnostic.fixes, *fixes))


def _smaller(file: ast.ModelFile, sizes: Sizes, checks: Callable[[ast.ModelFile, Sizes], bool]) -> Iterator[str]:
    for axis, size in sizes.items():
        for fewer in range(size - 1, 0, -1):
            mesh = {**sizes, axis: fewer}
            if checks(file, mesh):
                yield f"run with --mesh {','.join(f'{n}={s}' for n, s in mesh.items())} (checked)"
                break


def _repeated(file: ast.ModelFile, factor: str, axis: str) -> tuple[ast.ModelFile, tuple[str, str]] | None:
    """The file with `axis` as a product whose first part alone splits `factor`; None where the axis is one already."""
    declared = next((a for a in file.axes if a.name == axis), None)
    if declared is None or declared.product or factor not in {b.name for b in file.config}:
        return None
    span = declared.span
    taken = {axis, *(b.name for b in file.config), *(a.name for a in file.axes)}
    major, minor = [name for name in ("kv", "q", "a", "b", "c", "d") if name not in taken][:2]
    arguments = tuple(ast.Argument(None, ast.Name(name, span=span), span=span) for name in (factor, axis))
    gcd = ast.Call(ast.Name("gcd", span=span), arguments, span=span)
    product = replace(declared, product=(major, minor), bindings=(ast.Binding(major, gcd, span=span),))

    def renamed(node: Any) -> Any:
        if isinstance(node, ast.FactorRef):
            return replace(node, axis=major) if (node.name, node.axis) == (factor, axis) else node
        if isinstance(node, tuple):
            return tuple(renamed(n) for n in node)
        if is_dataclass(node) and isinstance(node, ast.Node):
            return replace(node, **{f.name: renamed(getattr(node, f.name)) for f in fields(node)})
        return node

    axes = tuple(product if a is declared else a for a in file.axes)
    return replace(file, axes=axes, modules=renamed(file.modules)), (major, minor)
