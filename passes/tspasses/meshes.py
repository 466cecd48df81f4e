"""Other ways to arrange the same ranks: every way to share them out among a model's axes, placed and costed.

The axes of a mesh are the operator's to size, and which arrangement is best depends on more than collectives: a cache that no factor
of splits is whole on every rank of `tp`, and on fewer of them where `dp` has more. So nothing is chosen here; all are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsc import ast
from tsc.diagnostics import CompileError
from tsc.elaborate import elaborate
from tspasses.place import place
from tspasses.placed import Options
from tspasses.plan import Plan, plan_of


@dataclass(frozen=True, slots=True)
class Arrangement:
    """sizes: ranks by axis. plan: None where the model cannot have this mesh, and why not."""

    sizes: Mapping[str, int]
    plan: Plan | None
    reason: str = ""


def sized_axes(file: ast.ModelFile) -> Sequence[str]:
    """The axes that --mesh gives ranks to: all but the products of others."""
    names = {a.name for a in file.axes}
    return [a.name for a in file.axes if not set(a.product) & names]


def arrangements(
    file: ast.ModelFile, config: Mapping[str, Any], ranks: int, options: Options, entry: str | None = None
) -> Sequence[Arrangement]:
    """All of them, the fastest by the predicted time of a step first, then those that cannot be."""
    found = [_arranged(file, config, sizes, options, entry) for sizes in _shares(sized_axes(file), ranks)]
    return sorted(found, key=lambda a: (a.plan is None, a.plan.step_seconds if a.plan else 0.0))


def _arranged(file: ast.ModelFile, config: Mapping[str, Any], sizes: Mapping[str, int], options: Options, entry: str | None) -> Arrangement:
    try:
        return Arrangement(sizes, plan_of(place(elaborate(file, config, sizes, entry=entry), options)))
    except CompileError as error:
        return Arrangement(sizes, None, error.diagnostics[0].message)


def _shares(axes: Sequence[str], ranks: int) -> Iterator[dict[str, int]]:
    """Every way to write `ranks` as a product, a factor for each axis."""
    if len(axes) < 2:
        yield dict.fromkeys(axes, ranks)
        return
    first, *rest = axes
    for size in (n for n in range(1, ranks + 1) if ranks % n == 0):
        for others in _shares(rest, ranks // size):
            yield {first: size, **others}
